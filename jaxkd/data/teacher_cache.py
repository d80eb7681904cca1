"""A teacher's answers on disk: computed once, for students that train without it.

A cache is a folder of array_record files with one record an example, and a manifest
that says of which teacher and data they are. A record is one element of a NumPy
structure: two checksums, of the record and of the example it is for, and the arrays.
"""

import functools
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxkd.data.sources import Examples
from jaxkd.types import Batch, Network, Variables

MANIFEST = "teacher.json"
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher that answers batches with the arrays to be stored.

    Attributes:
        fingerprint: another for every other teacher.
        settings: what else the arrays depend on, as JSON can hold it.
        answer: ``batch -> arrays``, one row an example.
    """

    fingerprint: str
    settings: Mapping[str, Any]
    answer: Callable[[Batch], Mapping[str, np.ndarray]]


def variables_fingerprint(variables: Variables) -> str:
    """Return a checksum of a network's variables: paths, shapes, dtypes and values."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        array = np.ascontiguousarray(jax.device_get(leaf))
        name = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        total.update(name.encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def network_targets(
    teacher: Network,
    variables: Variables,
    *,
    k: int | None,
    dtype: str = "float16",
    mesh: Mesh | None = None,
) -> TeacherTargets:
    """Return a network as the teacher of a cache.

    A number in float16 is off by 2^-11 of itself at most: the log-probability of a
    token of 1 % by 0.002, and so its probability by 0.2 % of itself. float32 stores
    what the network computed.

    Args:
        teacher: the network.
        variables: its.
        k: how many best tokens to keep; None keeps all logits, which
            `jaxkd.methods.cached` reads.
        dtype: of the log-probabilities or logits, one of `DTYPES`.
        mesh: of this process's devices, on which the variables lie; None for one.

    Raises:
        ValueError: another dtype, or k below 1.
    """
    # The layers above this one read data, so they are imported when all are there.
    from jaxkd.losses.topk import top_k_log_probs
    from jaxkd.programs.distill import network_inputs
    from jaxkd.training.sharding import on_mesh, shard_batch

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, or None for all logits, got {k}")

    def stored(values: Any) -> Any:
        limit = float(jnp.finfo(dtype).max)
        return jnp.clip(values, -limit, limit).astype(dtype)

    def compute(variables: Variables, batch: Batch) -> dict[str, Any]:
        logits = teacher.apply(variables, network_inputs(batch))[0].logits
        if k is None:
            return {"teacher_logits": stored(logits)}
        ids, log_probs = top_k_log_probs(logits, k)
        smallest = np.min_scalar_type(logits.shape[-1] - 1)
        return {
            "teacher_ids": ids.astype(smallest),
            "teacher_log_probs": stored(log_probs),
        }

    run = jax.jit(compute if mesh is None else on_mesh(compute, mesh))

    def answer(batch: Batch) -> Mapping[str, np.ndarray]:
        batch = batch if mesh is None else shard_batch(batch, mesh)
        return jax.device_get(run(variables, batch))

    return TeacherTargets(
        variables_fingerprint(variables), {"k": k, "dtype": dtype}, answer
    )


@dataclass(frozen=True)
class Shard:
    """One file of a cache, and the examples it is for."""

    path: Path
    rows: range


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


def record_type(manifest: Mapping[str, Any]) -> np.dtype:
    """Return the structure of a cache's records."""
    arrays = [
        (k, kind, tuple(shape)) for k, (kind, shape) in manifest["arrays"].items()
    ]
    return np.dtype([("checksum", "<u4"), ("example", "<u4"), *arrays])


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

    from jaxkd.evaluation.results import write_atomically

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
