"""Records in files: JSON lines, plain text, tables, Parquet, Arrow and ArrayRecord.

Records are dicts, and can be read in any order: JSON lines that are not compressed,
Parquet, Arrow and ArrayRecord files are never read at once.
"""

import csv
import io
import itertools
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxkd.arguments import checked
from jaxkd.data.columns import COLUMNS, Chained, open_columns
from jaxkd.data.datasets import tfds_splits
from jaxkd.data.splits import split_files
from jaxkd.untrusted import LARGEST_JSON, blaming, decompressed, json_from

Part = Literal["line", "paragraph", "file"]
Record = Mapping[str, Any]


@checked()
def open_records(
    *paths: str | Path, part: Part = "line", split: str = "train"
) -> Sequence[Record]:
    """Return the records of one or several files, after one another.

    The file's name says what it is:

    * ``.jsonl``, an object a line; empty lines are passed over;
    * ``.tsv``, rows of a table whose first line names the columns, without quotes;
    * ``.csv``, the same with commas, and quotes where they are needed;
    * ``.txt``, parts of a text as ``{"text": …}``;
    * ``.parquet``, rows (``pip install 'jaxkd-distill[parquet]'``);
    * ``.arrow``, rows of a stream as `datasets` writes it (the same);
    * ``.array_record``, each record an object in JSON.

    The first four may be compressed (``.xz``, ``.gz``). A folder stands for the files
    of one split: what ``save_to_disk`` of `datasets` has written, or a data set's files
    as the Hugging Face hub has them, see `jaxkd.data.split_files`.

    Args:
        *paths: of the files and folders.
        part: what a record of a ``.txt`` file is: a ``line``, a ``paragraph`` (between
            blank lines), or the ``file``. Blank ones are left out.
        split: of folders: ``train``, ``validation``, ``test`` or a name of the user's.

    Raises:
        FileNotFoundError: a file is missing, or a folder has no such split.
        ValueError: no files, a name of another kind, a file that cannot be read; when a
            record is read, one that is no object.
        ImportError: pyarrow is not installed.
    """
    if not paths:
        raise ValueError("open_records() needs at least one file")
    found = [
        file
        for path in map(Path, paths)
        for file in (split_files(path, split) if path.is_dir() else [path])
    ]
    opened = [_open(path, part) for path in found]
    return opened[0] if len(opened) == 1 else Chained(opened)


@checked()
def tfds_records(
    name: str, split: str, *, data_dir: str | Path | None = None
) -> Sequence[Record]:
    """Return the records of a split of tensorflow-datasets, without TensorFlow.

    Args:
        name: such as ``"ag_news_subset"``, prepared as array_record files; see
            `jaxkd.data.tfds_dataset`.
        split: such as ``"train"``.
        data_dir: of prepared data sets; None for the library's own default.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        FileNotFoundError: the data set is not prepared. It says how to.
    """
    return tfds_splits(name, [split], data_dir)[1][0]


@checked()
def texts(records: Iterable[Record], field: str = "text") -> Iterator[str]:
    """Yield one field of every record, as text.

    Args:
        records: of `open_records` or `tfds_records`, whose texts are bytes.
        field: its name.

    Raises:
        ValueError: a record without it, or in which it is no text. It names the record.
    """
    for i, record in enumerate(records):
        value = record.get(field)
        value = value.decode() if isinstance(value, bytes) else value
        if not isinstance(value, str):
            raise ValueError(
                f"record {i} has no text in its field {field!r}: it has "
                f"{ {name: type(v).__name__ for name, v in record.items()} }"
            )
        yield value


def _open(path: Path, part: Part) -> Sequence[Record]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put the file there")
    name = path.name.removesuffix(".xz").removesuffix(".gz")
    # Shards are named such as x.array_record-00000-of-00004.
    if ".array_record" in name:
        return _ArrayRecords(path)
    if name.endswith(COLUMNS):
        return open_columns(path)
    if name.endswith(".jsonl"):
        return _JsonLines(path)
    if name.endswith(".txt"):
        text = _text(path)
        blocks = {"line": lambda text: text.split("\n"), "paragraph": _paragraphs}
        parts = blocks[part](text) if part in blocks else [text]
        return [{"text": block} for block in parts if block.strip()]
    if name.endswith((".tsv", ".csv")):
        return _table(path, name.endswith(".csv"))
    raise ValueError(
        f"{path} is of no kind that is known: name it .jsonl, .txt, .tsv, .csv (each "
        "also with .xz or .gz), .parquet, .arrow or .array_record"
    )


def _read(path: Path) -> bytes:
    """Return a file's content, decompressed, and UTF-8 for sure."""
    try:
        content = decompressed(path)
        content.decode()
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from None
    return content


def _text(path: Path) -> str:
    """Return a text without what Windows puts before it and at the ends of lines.

    Only line feeds end a line: texts hold other characters that splitlines() cuts at.
    """
    return _read(path).decode("utf-8-sig").replace("\r\n", "\n")


def _paragraphs(text: str) -> list[str]:
    lines = itertools.groupby(text.split("\n"), lambda line: bool(line.strip()))
    return ["\n".join(group) for full, group in lines if full]


def _table(path: Path, quoted: bool) -> list[Record]:
    text = _text(path).rstrip("\n")
    if quoted:
        with blaming(str(path)):
            lines = list(csv.reader(io.StringIO(text), strict=True)) or [[]]
    else:
        lines = [line.split("\t") for line in text.split("\n")]
    columns, *rows = lines
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path} names a column twice: {', '.join(columns)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise ValueError(
                f"{path}: row {number} has {len(row)} columns, but the first one "
                f"names {len(columns)} ({', '.join(columns)})"
            )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _parsed(content: bytes, where: str) -> Record:
    record = json_from(content, where, LARGEST_JSON)
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a {type(record).__name__}: give an object")
    return record


class _JsonLines(Sequence):
    """Lines of a file that stays on disk, unless it is compressed."""

    def __init__(self, path: Path):
        self._path = path
        if path.suffix == ".jsonl" and path.stat().st_size:
            with path.open("rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            self._content = _read(path)
        bytes_ = np.frombuffer(self._content, np.uint8)
        chunk = 2**24
        found = [
            i + np.flatnonzero(bytes_[i : i + chunk] == ord("\n"))
            for i in range(0, len(bytes_), chunk)
        ]
        ends = np.concatenate([*found, [len(bytes_)]]).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1])
        # Empty lines are passed over, of which Windows leaves one character.
        full = ends - starts > 1
        (short,) = np.nonzero(ends - starts == 1)
        full[short] = bytes_[starts[short]] != ord("\r")
        self._lines = np.stack([starts, ends], axis=1)[full]
        self._numbers = 1 + np.flatnonzero(full)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, position: Any) -> Record:
        start, end = self._lines[position]
        where = f"{self._path}: line {self._numbers[position]}"
        return _parsed(self._content[start:end], where)


class _ArrayRecords(Sequence):
    """Objects in JSON in an ArrayRecord file."""

    def __init__(self, path: Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._path = path
        try:
            self._records: Any = ArrayRecordDataSource(str(path))
            self._size = len(self._records)
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, position: Any) -> Record:
        if not 0 <= position < self._size:
            raise IndexError(position)
        where = f"{self._path}: record {position}"
        with blaming(where):
            content = self._records[position]
        return _parsed(content, where)
