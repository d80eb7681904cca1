"""Rows of Parquet and Arrow files, in any order and a group in memory at a time."""

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkd.arguments import checked
from jaxkd.untrusted import blaming

LARGEST_GROUP, LARGEST_BYTES = 2**26, 2**32
"""Values and bytes of a group of rows, which is in memory at once: a small file can ask
for any number of values that are all alike."""

CACHED = 2**31
"""Bytes of the groups that are kept, so that shuffled rows find theirs there."""

COLUMNS = (".parquet", ".arrow")
"""Ends of the names of the files that `open_columns` reads."""


@checked()
def open_columns(path: Path) -> "Rows":
    """Return the rows of a Parquet file, or of an Arrow stream as `datasets` writes it.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: it is damaged, of another kind, or asks for too much memory.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ImportError(
            f"{path} needs pyarrow: pip install 'jaxkd-distill[parquet]'"
        ) from None
    return _Parquet(path) if path.suffix == ".parquet" else _Arrow(path)


@checked()
class Rows(Sequence):
    """The rows of a file as dicts.

    Attributes:
        path: of the file.
        schema: its columns, pyarrow's.
    """

    def __init__(self, path: Path, schema: Any, sizes: Sequence[int]):
        self.path, self.schema = path, schema
        if max(sizes, default=0) * len(schema) > LARGEST_GROUP:
            raise ValueError(
                f"{path} has {max(sizes)} rows of {len(schema)} columns in a row "
                f"group, but {LARGEST_GROUP:,} values are read at once: write it with "
                "a smaller row_group_size"
            )
        self._ends = list(itertools.accumulate(sizes))
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def _read(self, group: int, columns: list[str] | None = None) -> Any:
        """Return a group of rows as a table, or some columns of it."""
        raise NotImplementedError

    def _table(self, group: int) -> Any:
        if group not in self._kept:
            self._kept[group] = self._read(group)
            while sum(table.nbytes for table in self._kept.values()) > CACHED:
                if len(self._kept) == 1:
                    break
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: Any) -> Mapping[str, Any]:
        group, row = place(self._ends, position)
        with self._lock:
            table = self._table(group)
        if row >= len(table):
            raise ValueError(f"{self.path} lacks rows that it counts: fetch it again")
        with blaming(f"{self.path}: record {position}"):
            return table.slice(row, 1).to_pylist()[0]

    @checked()
    def column(self, name: str) -> list[Any]:
        """Return the values of one column."""
        with blaming(f"{self.path}, column {name!r},"):
            groups = range(len(self._ends))
            parts = [self._read(i, [name]).column(0).to_pylist() for i in groups]
            values = [value for part in parts for value in part]
            if len(values) != len(self):
                raise ValueError("it lacks rows that it counts")
            return values


class _Parquet(Rows):
    def __init__(self, path: Path):
        from pyarrow.parquet import ParquetFile

        try:
            self._file: Any = ParquetFile(path)
            meta = self._file.metadata
            sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
            schema = self._file.schema_arrow
        except Exception as error:  # whatever a damaged file causes
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from None
        super().__init__(path, schema, sizes)

    def _read(self, group: int, columns: list[str] | None = None) -> Any:
        import pyarrow

        batches, size = [], 0
        with blaming(f"{self.path}, row group {group},"):
            found = self._file.iter_batches(256, row_groups=[group], columns=columns)
            for batch in found:
                for column in batch.columns:
                    # Texts that are all alike are stored as one text and its places.
                    whole = getattr(column, "dictionary_decode", lambda c=column: c)()
                    size += whole.nbytes
                if size > LARGEST_BYTES:
                    raise ValueError(f"it has more than {LARGEST_BYTES:,} bytes")
                batches.append(batch)
            return pyarrow.Table.from_batches(batches, batches[0].schema)


class _Arrow(Rows):
    """An Arrow stream that stays on disk: its buffers are places in the file."""

    def __init__(self, path: Path):
        import pyarrow

        try:
            with pyarrow.memory_map(str(path)) as file:
                for message in pyarrow.ipc.MessageReader.open_stream(file):
                    if _is_compressed(message):
                        raise ValueError("its rows are compressed")
            with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as stream:
                self._batches, schema = list(stream), stream.schema
            sizes = [len(batch) for batch in self._batches]
        except Exception as error:  # whatever a damaged file causes
            raise ValueError(
                f"{path} is damaged or no Arrow stream ({error}): fetch it again, or "
                "write it again by save_to_disk of datasets"
            ) from None
        super().__init__(path, schema, sizes)

    def _read(self, group: int, columns: list[str] | None = None) -> Any:
        import pyarrow

        batch = self._batches[group]
        batch = batch if columns is None else batch.select(columns)
        with blaming(f"{self.path}, row group {group},"):
            batch.validate(full=True)  # Else a wrong offset reads other memory.
            return pyarrow.Table.from_batches([batch])


def _is_compressed(message: Any) -> bool:
    """Return whether a message's buffers are compressed: they could become any size.

    pyarrow does not say, but the message's table does: Arrow's format, Message.fbs.
    """
    from flatbuffers.table import Table

    if message.type not in ("record batch", "dictionary"):
        return False
    content = message.metadata.to_pybytes()

    def below(table: Any, field: int) -> Any:
        offset = table.Offset(4 + 2 * field)
        return Table(content, table.Indirect(table.Pos + offset))

    header = below(Table(content, int.from_bytes(content[:4], "little")), 2)
    if message.type == "dictionary":
        header = below(header, 1)
    return bool(header.Offset(4 + 2 * 3))


@checked()
class Chained(Sequence):
    """Sequences after one another."""

    def __init__(self, parts: Sequence[Sequence[Any]]):
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, position: Any) -> Any:
        part, row = place(self._ends, position)
        return self._parts[part][row]


@checked()
def place(ends: list[int], position: int) -> tuple[int, int]:
    """Return the part and the place in it, of parts that end there."""
    if not ends or not 0 <= position < ends[-1]:
        raise IndexError(position)
    part = bisect.bisect_right(ends, position)
    return part, position - (ends[part - 1] if part else 0)
