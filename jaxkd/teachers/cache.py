"""A teacher's answers on disk: computed once, for students that train without it.

A cache is a folder of array_record files with one record an example, and a manifest
that says of which teacher and data they are. A record is one element of a NumPy
structure: two checksums, of the record and of the example it is for, and the arrays.
"""

import functools
import json
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
from jaxkd.teachers.targets import TeacherTargets
from jaxkd.types import Batch

MANIFEST = "teacher.json"


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
        found = json.loads(path.read_text())
        record_type(found)
        shards(folder, found)
        return {"teacher": "", "data": "", **found}
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete the folder and make the cache again"
        ) from None


@checked()
def record_type(manifest: Mapping[str, Any]) -> np.dtype:
    """Return the structure of a cache's records."""
    arrays = [
        (k, kind, tuple(shape)) for k, (kind, shape) in manifest["arrays"].items()
    ]
    return np.dtype([("checksum", "<u4"), ("example", "<u4"), *arrays])


@checked()
def record_checksum(record: bytes) -> int:
    """Return the checksum of all of a record but the checksum."""
    return zlib.crc32(record[4:])


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
        ValueError: sizes that do not fit, or a folder that holds another cache.
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
        **targets.settings,
    }
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder)
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
        if not shard.path.is_file():
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

    from jaxkd.files import write_atomically

    partial = shard.path.with_suffix(".partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    arrays: Mapping[str, np.ndarray] = {}
    for batch, positions in _batches(source, shard.rows, manifest["batch_size"]):
        arrays = targets.answer(batch)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise FloatingPointError(
                    f"the teacher's {name} for examples {positions.start} to "
                    f"{positions.stop - 1} are not all finite: check its weights, and "
                    "the dtype it computes in"
                )
        kinds = {k: (v.dtype.str, v.shape[1:]) for k, v in arrays.items()}
        records = np.empty(len(batch["index"]), record_type({"arrays": kinds}))
        records["example"] = example_checksums(batch)
        for name, array in arrays.items():
            records[name] = array
        for record in records[: len(positions)]:
            record["checksum"] = record_checksum(record.tobytes())
            writer.write(record.tobytes())
        progress(positions.stop)
    writer.close()
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    kinds = {k: (v.dtype.str, v.shape[1:]) for k, v in arrays.items()}
    text = json.dumps({**manifest, "arrays": kinds}, indent=2) + "\n"
    write_atomically(shard.path.parent / MANIFEST, text)
    partial.rename(shard.path)


def _batches(
    source: Examples, rows: range, batch_size: int
) -> Iterator[tuple[Batch, range]]:
    """Yield batches and their positions; the last is filled up, for one shape."""
    for start in range(rows.start, rows.stop, batch_size):
        positions = range(start, min(start + batch_size, rows.stop))
        filled = np.minimum(np.arange(start, start + batch_size), rows.stop - 1)
        yield source.take(filled), positions
