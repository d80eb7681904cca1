"""Batches of labelled and unlabelled examples together, and examples with a cache."""

import functools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np

from jaxkd.arguments import checked, integer
from jaxkd.data.pipeline import Named
from jaxkd.data.shown import brief
from jaxkd.data.sources import Examples, Source
from jaxkd.data.transforms import Transform


@checked()
@dataclass(frozen=True)
class Joined:
    """Examples with further arrays beside them, such as a teacher's cached logits.

    Attributes:
        source: the examples.
        arrays: by name, one row an example, in the source's order.

    Raises:
        ValueError: an array has another number of rows, or a name that is taken.
    """

    source: Examples
    arrays: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    def __post_init__(self):
        for name, array in self.arrays.items():
            if len(array) != len(self.source):
                raise ValueError(
                    f"{name} has {len(array)} rows but {self.source.name!r} has "
                    f"{len(self.source)} examples: give one row an example, in their "
                    "order"
                )
        taken = self.source.take(np.zeros(1, int)).keys() & self.arrays.keys()
        if taken:
            raise ValueError(
                f"{self.source.name!r} has {', '.join(sorted(taken))} of its own: give "
                "the array another name"
            )

    @property
    def name(self) -> str:
        """For messages and results."""
        return f"{self.source.name} with {', '.join(self.arrays)}"

    @property
    def classes(self) -> int:
        """Labels are below it."""
        return self.source.classes

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.source)

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the examples at these positions, with their rows of the arrays."""
        rows = {name: array[positions] for name, array in self.arrays.items()}
        return {**self.source.take(positions, rng), **rows}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of the source's and of the arrays."""
        total = zlib.crc32(self.source.fingerprint.encode())
        for name, array in sorted(self.arrays.items()):
            total = zlib.crc32(
                np.ascontiguousarray(array), zlib.crc32(name.encode(), total)
            )
        return f"{total:08x}"


class _Batches:
    """A random-access source of batches: labelled examples, then unlabelled ones."""

    def __init__(
        self,
        source: Examples,
        groups: tuple[np.ndarray, np.ndarray],
        sizes: tuple[int, int],
        steps: int,
        seed: int,
        transform: Transform | None,
        cycle: bool,
    ):
        self._source, self._groups, self._sizes = source, groups, sizes
        self._steps, self._seed, self._transform = steps, seed, transform
        self._cycle = cycle
        # The threads that read ask for the same order again and again.
        self._order = functools.lru_cache(maxsize=8)(self._new_order)
        share = sum(sizes) // jax.process_count()
        self._process = jax.process_index()
        self._part = slice(self._process * share, (self._process + 1) * share)

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        transform = re.sub(r" at 0x[0-9a-f]+", "", repr(self._transform))
        groups = [f"{len(g)} ({zlib.crc32(g.tobytes()):08x})" for g in self._groups]
        return (
            f"Batches({self._source.name} with checksum {self._source.fingerprint}, "
            f"labelled and unlabelled {groups}, sizes {self._sizes}, {self._steps} "
            f"steps, seed {self._seed}, cycle {self._cycle}, transform {transform})"
        )

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        # Every process draws all of the batch, and reads its own rows of it.
        draw = self._next if self._cycle else self._with_replacement
        drawn = draw(int(step))
        labelled = np.repeat([True, False], self._sizes)[self._part]
        rng = np.random.default_rng([self._seed, int(step), self._process, 1])
        batch = self._source.take(np.concatenate(drawn)[self._part], rng)
        # A label that is not known cannot reach a loss by mistake.
        label = np.where(labelled, batch["label"], 0).astype(np.int32)
        batch = {**batch, "label": label, "labelled": labelled}
        return batch if self._transform is None else self._transform(batch, rng)

    def _with_replacement(self, step: int) -> list[np.ndarray]:
        order = np.random.default_rng([self._seed, step])
        return [
            order.choice(group, size) if size else np.zeros(0, np.int32)
            for group, size in zip(self._groups, self._sizes, strict=True)
        ]

    def _next(self, step: int) -> list[np.ndarray]:
        """Return what comes next in each kind's shuffled passes."""
        drawn = []
        for kind, (group, size) in enumerate(
            zip(self._groups, self._sizes, strict=True)
        ):
            places = np.arange(step * size, (step + 1) * size)
            passes, places = divmod(places, max(len(group), 1))
            rows = [
                self._order(kind, int(p))[i]
                for p, i in zip(passes, places, strict=True)
            ]
            drawn.append(np.asarray(rows, np.int32))
        return drawn

    def _new_order(self, kind: int, number: int) -> np.ndarray:
        """Return a kind's examples in the order of one pass."""
        order = np.random.default_rng([self._seed, kind, number, 2])
        return order.permutation(self._groups[kind])


@checked(sizes=integer, steps=integer)
def semi_supervised_batches(
    source: Examples,
    labelled: np.ndarray,
    unlabelled: np.ndarray,
    sizes: tuple[int, int],
    *,
    steps: int,
    seed: int = 0,
    transform: Transform | None = None,
    cycle: bool = False,
) -> grain.IterDataset:
    """Return batches that hold labelled and unlabelled examples of one source.

    Both are drawn with replacement, or by ``cycle`` in shuffled passes, each kind at
    its own pace; sizes do not depend on how many there are.
    Every batch holds the source's arrays, ``index``, and ``labelled`` (booleans, the
    labelled examples first); ``label`` is 0 where it is not known. The same seed gives
    the same batches.

    Args:
        source: the examples, with ``label``.
        labelled: positions in the source whose labels are known.
        unlabelled: positions whose labels are not; may be those of the labelled too.
        sizes: how many of each in a batch; 0 leaves one kind out.
        steps: batches.
        seed: of the draws.
        transform: of every batch, such as ``Compose((PadCrop(), Flip(), …))``.
        cycle: whether no example comes again before all others of its kind have come.
            A pass over the unlabelled examples is then an epoch.

    Raises:
        ValueError: a kind with a size but without positions, positions outside the
            source, no steps, or a batch that the processes cannot share.
    """
    groups = np.asarray(labelled), np.asarray(unlabelled)
    for name, group, size in zip(
        ("labelled", "unlabelled"), groups, sizes, strict=True
    ):
        # A mask would be taken for the positions 0 and 1.
        if group.size and not np.issubdtype(group.dtype, np.integer):
            raise ValueError(
                f"{name} is {group.dtype}, but must be positions: np.flatnonzero makes "
                "them of a mask"
            )
        if size < 0 or (size and not len(group)):
            raise ValueError(
                f"sizes has {size} {name} examples a batch, but {name} holds "
                f"{len(group)} positions: give at least one, or size 0"
            )
        if len(group) and not 0 <= group.min() <= group.max() < len(source):
            raise ValueError(
                f"{name} holds positions from {group.min()} to {group.max()}, but "
                f"{source.name!r} has {len(source)} examples"
            )
    if steps < 1 or sum(sizes) < 1 or sum(sizes) % jax.process_count():
        raise ValueError(
            f"steps must be at least 1 and sizes add up to a multiple of the "
            f"{jax.process_count()} processes, got steps={steps} and sizes={sizes}"
        )
    first, second = (group.astype(np.int32) for group in groups)
    halves = first, second
    whole: Any = _Batches(source, halves, sizes, steps, seed, transform, cycle)
    # Slicing arrays is quick; decoding images is not, and leaves Python's lock.
    quick = isinstance(getattr(source, "source", source), Source)
    threads, ahead = (1, 4) if quick else (16, 16)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return Named(grain.MapDataset.source(whole).to_iter_dataset(options), repr(whole))
