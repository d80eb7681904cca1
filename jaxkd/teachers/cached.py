"""Examples with a cached teacher's answers, checked as they are read."""

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.arguments import checked
from jaxkd.data.sources import Examples
from jaxkd.teachers.cache import (
    Shard,
    damaged,
    example_checksums,
    open_shard,
    places_of,
    read_manifest,
    read_record,
    record_type,
    shards,
)


@checked()
@dataclass(frozen=True)
class CachedTeacher:
    """Examples with what a teacher once said of them, to train on without it.

    Batches have ``teacher_ids`` and ``teacher_log_probs`` (…, k), best first, which
    `jaxkd.methods.topk_kd` reads, or ``teacher_logits`` for `jaxkd.methods.cached`.

    Attributes:
        source: the examples that the cache was made for.
        folder: of the cache.
        teacher: the fingerprint that its teacher must have, as
            `jaxkd.teachers.variables_fingerprint` returns it; None takes any's.

    Raises:
        FileNotFoundError: the cache, or a file of it, is not there.
        ValueError: it is of another teacher or other data, or a file is damaged.
    """

    source: Examples
    folder: str | Path
    teacher: str | None = None

    def __post_init__(self):
        found = self._manifest
        if self.teacher not in (None, found["teacher"]):
            raise ValueError(
                f"{self.folder} is a cache made by another teacher, with the "
                f"fingerprint {found['teacher']} in place of {self.teacher}: make one "
                "of this teacher, or pass teacher=None to learn from that one"
            )
        if (found["examples"], found["data"]) != (
            len(self.source),
            self.source.fingerprint,
        ):
            raise ValueError(
                f"{self.folder} is a cache of other data: {found['examples']} examples "
                f"with the fingerprint {found['data']}, but {self.source.name!r} has "
                f"{len(self.source)} with {self.source.fingerprint}. Read the data and "
                "the windows that it was made for, or make it again"
            )
        self._readers  # noqa: B018, opens every file, so that a bad one is found now

    @functools.cached_property
    def _manifest(self) -> dict[str, Any]:
        return read_manifest(Path(self.folder))

    @functools.cached_property
    def _shards(self) -> list[Shard]:
        return shards(Path(self.folder), self._manifest)

    @functools.cached_property
    def _readers(self) -> list[Any]:
        return [open_shard(shard, self._manifest) for shard in self._shards]

    @property
    def name(self) -> str:
        """For messages and results."""
        return f"{self.source.name} with a cached teacher"

    @property
    def classes(self) -> int:
        """Labels are below it."""
        return self.source.classes

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of the manifest, which has the teacher's and the data's."""
        return f"{zlib.crc32(json.dumps(self._manifest).encode()):08x}"

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the examples at these positions, with the teacher's answers.

        Raises:
            ValueError: a record is damaged, or was made for another example. It names
                the file and the record.
        """
        positions = np.asarray(positions)
        batch = self.source.take(positions, rng)
        records = np.empty(len(positions), record_type(self._manifest))
        which, within = np.divmod(positions, self._manifest["shard_examples"])
        for shard in np.unique(which):
            (rows,) = np.nonzero(which == shard)
            records[rows] = self._read(int(shard), within[rows].tolist())
        wrong = np.flatnonzero(records["example"] != example_checksums(batch))
        if len(wrong):
            raise ValueError(
                f"{self.folder}: answer {positions[wrong[0]]} was made for another "
                f"example than {self.source.name!r} has there: the data changed, or "
                "are changed at random as they are read. Make the cache again, or read "
                "the data as they are"
            )
        answers = {
            name: np.ascontiguousarray(records[name])
            for name in self._manifest["arrays"]
        }
        return {**batch, **answers}

    def _read(self, shard: int, within: list[int]) -> np.ndarray:
        """Return some records of one file, each with the checksum that it should."""
        path, kind = self._shards[shard].path, record_type(self._manifest)
        try:
            found = self._readers[shard].read(within)
        except Exception as error:  # the reader's own checks
            raise ValueError(damaged(path, str(error))) from None
        places, records = places_of(self._manifest), []
        for i, record in zip(within, found, strict=True):
            try:
                records.append(read_record(record, kind, places))
            except ValueError as error:
                raise ValueError(damaged(path, f"record {i} {error}")) from None
        return np.concatenate(records)
