"""A teacher's answers on disk: computed once, for students that train without it.

A cache is a folder of array_record files with one record an example, and a manifest
that says of which teacher and data they are. A record is one element of a NumPy
structure: two checksums, of the record and of the example it is for, and the arrays.
After a file's records comes its label, JSON of the same manifest and its examples.
Where the manifest's dtype is "coded", `jaxkd.teachers.coding` writes the arrays, and
the structure is what they are decoded to.
"""

import functools
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.arguments import checked
from jaxkd.data.sources import Examples
from jaxkd.digests import check_json, sealed, write_json
from jaxkd.files import check_plain
from jaxkd.teachers.coding import decode, encode
from jaxkd.teachers.targets import TeacherTargets
from jaxkd.types import Batch
from jaxkd.untrusted import LARGEST_JSON, json_file, json_from

MANIFEST = "teacher.json"

MOST_FILES, LARGEST_RECORD = 100_000, 2**28
"""Files of a cache, whose names have five digits, and bytes of one answer, at most."""


@checked()
@dataclass(frozen=True)
class Shard:
    """One file of a cache, and the examples it is for."""

    path: Path
    rows: range


@checked()
def shards(folder: Path, manifest: Mapping[str, Any]) -> list[Shard]:
    """Return the files of a cache, whether or not they are written."""
    examples, size = manifest["examples"], manifest["shard_examples"]
    count = -(-examples // size)
    return [
        Shard(
            folder / f"teacher-{i:05d}-of-{count:05d}.array_record",
            range(i * size, min((i + 1) * size, examples)),
        )
        for i in range(count)
    ]


@checked()
def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a cache says of itself.

    Raises:
        FileNotFoundError: the folder holds no cache.
        ValueError: the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {folder} holds no teacher's cache, or no finished "
            "file of one. `jaxkd cache-teacher` writes one"
        )
    try:
        found = {"teacher": "", "data": "", **check_json(json_file(path))}
        check_plain(found, "it")
        files, size = divmod(found["examples"], found["shard_examples"])
        if found["shard_examples"] < 1 or not 0 <= files < MOST_FILES or size < 0:
            raise ValueError(f"it names more than {MOST_FILES:,} files, or none")
        places_of(found)
        shards(folder, found)
        return found
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as e:
        raise ValueError(
            f"{path} is damaged ({e!r}): delete the folder and make the cache again"
        ) from None


@checked()
def record_type(manifest: Mapping[str, Any]) -> np.dtype:
    """Return the structure of a cache's records."""
    arrays = [
        (k, kind, tuple(shape)) for k, (kind, shape) in manifest["arrays"].items()
    ]
    found = np.dtype([("checksum", "<u4"), ("example", "<u4"), *arrays])
    if found.hasobject or not 8 < found.itemsize <= LARGEST_RECORD:
        raise ValueError(
            f"an answer of {found.itemsize:,} bytes is not numbers of at most "
            f"{LARGEST_RECORD:,} bytes: {manifest['arrays']!r:.200}"
        )
    return found


@checked()
def places_of(manifest: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (places, k) of a coded cache's examples; None for one that is not coded.

    Raises:
        ValueError: it is coded, but not of best tokens and their log-probabilities.
    """
    kind = record_type(manifest)
    if manifest.get("dtype") != "coded":
        return None
    names, shape = ("teacher_ids", "teacher_log_probs"), kind[-1].shape
    kinds = [kind[name].base for name in names if name in (kind.names or ())]
    if (
        {*manifest["arrays"]} != {*names}
        or any(kind[name].shape != shape for name in names)
        or (kinds[0].kind, kinds[1]) != ("u", np.float32)
        or min(shape, default=0) < 1
    ):
        raise ValueError(
            f"a coded cache holds {' and '.join(names)}, unsigned integers and float32 "
            f"of one shape, not {manifest['arrays']!r:.200}"
        )
    return math.prod(shape[:-1]), shape[-1]


@checked()
def record_bytes(record: np.void, places: tuple[int, int] | None) -> bytes:
    """Return a record as it is written, its checksum before it.

    Args:
        record: of `record_type`.
        places: as `places_of` returns it.
    """
    content = record.tobytes()[4:]
    if places is not None:
        ids, log_probs = record["teacher_ids"], record["teacher_log_probs"]
        content = content[:4] + encode(ids.reshape(places), log_probs.reshape(places))
    return zlib.crc32(content).to_bytes(4, "little") + content


@checked()
def read_record(
    content: bytes, kind: np.dtype, places: tuple[int, int] | None
) -> np.ndarray:
    """Return one record that `record_bytes` wrote.

    Args:
        content: all of it.
        kind: `record_type`.
        places: as `places_of` returns it.

    Raises:
        ValueError: it is damaged.
    """
    # Coded, a record takes no more than in full, but for the ranks' widths.
    longest = kind.itemsize + (0 if places is None else places[1] + 8)
    if not 8 <= len(content) <= longest or (
        zlib.crc32(content[4:]) != int.from_bytes(content[:4], "little")
    ):
        raise ValueError("has another checksum")
    if places is None:
        if len(content) < longest:
            raise ValueError("has another checksum")
        return np.frombuffer(content, kind)
    found = np.zeros(1, kind)
    found["checksum"], found["example"] = np.frombuffer(content[:8], "<u4")
    ids, log_probs = decode(content[8:], *places)
    if ids.max() > np.iinfo(kind["teacher_ids"].base).max:
        raise ValueError(f"has token {ids.max()}")
    shape = kind["teacher_ids"].shape
    found["teacher_ids"][0] = ids.reshape(shape)
    found["teacher_log_probs"][0] = log_probs.reshape(shape)
    return found


@checked()
def label(shard: Shard, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of itself: whose answers to which examples it holds."""
    return {
        **json.loads(json.dumps(manifest)),
        "first": shard.rows.start,
        "last": shard.rows.stop - 1,
    }


@checked()
def open_shard(shard: Shard, manifest: Mapping[str, Any]) -> Any:
    """Return a reader of a file of a cache.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, or of another teacher, other data or other examples.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    if not shard.path.is_file():
        raise FileNotFoundError(
            f"{shard.path} is missing: the cache is not finished. `jaxkd "
            "cache-teacher` with the same arguments goes on with it"
        )
    expected = len(shard.rows) + bool(manifest.get("labels"))
    # Records are read in any order, so nothing is read ahead.
    try:
        reader = ArrayRecordReader(str(shard.path), options="readahead_buffer_size:0")
        count = reader.num_records()
        if count != expected:
            raise ValueError(f"it has {count} of {expected} records")
        if not manifest.get("labels"):  # as they were written once
            return reader
        last = reader.read([count - 1])[0]
        found = check_json(json_from(last, "its last record", LARGEST_JSON))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(damaged(shard.path, str(error))) from None
    for name, value in label(shard, manifest).items():
        # As text: the arrays stand in a record in this order.
        if json.dumps(found.get(name)) != json.dumps(value):
            raise ValueError(
                f"{shard.path} is not of this cache: its {name} is {found.get(name)!r} "
                f"in place of {value!r}. Delete it, and `jaxkd cache-teacher` with the "
                "same arguments writes the right one"
            )
    return reader


@checked()
def damaged(path: Path, problem: str) -> str:
    """Return the message for a file that cannot be read."""
    return (
        f"{path} is cut off or damaged ({problem}): delete it, and `jaxkd "
        "cache-teacher` with the same arguments writes it again"
    )


def example_checksums(batch: Batch) -> list[int]:
    """Return a checksum of each example's arrays, but for its index."""
    arrays = [
        np.ascontiguousarray(array)
        for name, array in sorted(batch.items())
        if name != "index"
    ]
    return [
        functools.reduce(lambda total, row: zlib.crc32(row, total), rows, 0)
        for rows in zip(*arrays, strict=True)
    ]


@checked()
def write_teacher_cache(
    folder: str | Path,
    source: Examples,
    targets: TeacherTargets,
    *,
    batch_size: int = 32,
    shard_examples: int = 4096,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write a teacher's answers to all examples; return the bytes of the files.

    Called again after a stop with the same arguments it goes on with the first file
    that is not finished, and ends with the files of a run that was not stopped. Of
    several processes (``jax.distributed``) each writes its share of the files, with a
    teacher on its own devices.

    Args:
        folder: made if it is missing.
        source: the examples, which are taken in their form to evaluate on.
        targets: the teacher.
        batch_size: examples that the teacher answers at once.
        shard_examples: in one file, a multiple of the batch size.
        progress: called after every batch with the examples done.

    Raises:
        ValueError: sizes that do not fit, or a folder that holds another cache or a
            file of another.
        FloatingPointError: an answer that is not finite; its file is not written.
    """
    if batch_size < 1 or shard_examples < 1 or shard_examples % batch_size:
        raise ValueError(
            "shard_examples must be a multiple of batch_size, and both at least 1, got "
            f"{shard_examples} and {batch_size}"
        )
    folder = Path(folder)
    manifest = {
        "teacher": targets.fingerprint,
        "data": source.fingerprint,
        "examples": len(source),
        "batch_size": batch_size,
        "shard_examples": shard_examples,
        "labels": True,
        **targets.settings,
    }
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder)
        if not found.get("labels"):  # begun before there were labels
            del manifest["labels"]
        other = {k: found.get(k) for k, v in manifest.items() if found.get(k) != v}
        if other:
            asked = {name: manifest[name] for name in other}
            raise ValueError(
                f"{folder} holds another cache, of {other} in place of {asked}: name a "
                "new folder, or finish that cache with the arguments it was begun with"
            )
    folder.mkdir(parents=True, exist_ok=True)
    files = shards(folder, manifest)
    for shard in files[jax.process_index() :: jax.process_count()]:
        if shard.path.is_file():
            open_shard(shard, manifest)
        else:
            _write_shard(shard, source, targets, manifest, progress)
        progress(shard.rows.stop)
    return sum(shard.path.stat().st_size for shard in files if shard.path.is_file())


def _write_shard(
    shard: Shard,
    source: Examples,
    targets: TeacherTargets,
    manifest: dict[str, Any],
    progress: Callable[[int], None],
) -> None:
    """Write one file, which gets its name when all of it is on the disk."""
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = shard.path.with_name(f".{shard.path.name}.{os.getpid()}.partial")
    try:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for batch, positions in _batches(source, shard.rows, manifest["batch_size"]):
            arrays = targets.answer(batch)
            for name, array in arrays.items():
                if not np.isfinite(array).all():
                    raise FloatingPointError(
                        f"the teacher's {name} for examples {positions.start} to "
                        f"{positions.stop - 1} are not all finite: check its weights, "
                        "and the dtype it computes in"
                    )
            kinds = {k: (v.dtype.str, v.shape[1:]) for k, v in arrays.items()}
            manifest = {**manifest, "arrays": kinds}
            places = places_of(manifest)
            records = np.empty(len(batch["index"]), record_type(manifest))
            records["example"] = example_checksums(batch)
            for name, array in arrays.items():
                records[name] = array
            for record in records[: len(positions)]:
                writer.write(record_bytes(record, places))
            progress(positions.stop)
        if manifest.get("labels"):
            writer.write(json.dumps(sealed(label(shard, manifest))).encode())
        writer.close()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        write_json(shard.path.parent / MANIFEST, manifest)
        partial.rename(shard.path)
    finally:
        partial.unlink(missing_ok=True)


def _batches(
    source: Examples, rows: range, batch_size: int
) -> Iterator[tuple[Batch, range]]:
    """Yield batches and their positions; the last is filled up, for one shape."""
    for start in range(rows.start, rows.stop, batch_size):
        positions = range(start, min(start + batch_size, rows.stop))
        filled = np.minimum(np.arange(start, start + batch_size), rows.stop - 1)
        yield source.take(filled), positions
