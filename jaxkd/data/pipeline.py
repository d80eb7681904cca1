"""Batches of a source through grain: shuffled by seed, sharded, resumable."""

from typing import Any

import grain
import jax
import numpy as np

from jaxkd.data.sources import Source


class _Batches:
    """A random-access source of whole batches, in a new order every epoch.

    An epoch's order is one permutation, made when its first batch is read: grain's own
    shuffle computes each position alone, which for small data sets took 300 µs an
    example, more than the train step.
    """

    def __init__(self, source: Source, batch_size: int, epochs: int, seed: int | None):
        self._source, self._size, self._seed = source, batch_size, seed
        self._per_epoch = len(source) // batch_size
        self._epochs = epochs
        self._order: tuple[int, np.ndarray] = (-1, np.arange(len(source)))

    def __len__(self) -> int:
        return self._per_epoch * self._epochs

    def __repr__(self) -> str:
        # In the iterators' state, to refuse another pipeline's.
        return (
            f"Batches({self._source.name}, {len(self._source)} examples, size "
            f"{self._size}, {self._epochs} epochs, seed {self._seed})"
        )

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        epoch, i = divmod(int(position), self._per_epoch)
        known, order = self._order
        if self._seed is not None and known != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            order = rng.permutation(len(self._source))
            self._order = epoch, order
        return self._source.take(order[i * self._size : (i + 1) * self._size])


class _Named(grain.IterDataset):
    """Batches whose iterators' state names the pipeline it belongs to."""

    def __init__(self, batches: grain.IterDataset, name: str):
        super().__init__(batches)
        self._name = name

    def __iter__(self) -> grain.DatasetIterator:
        return _NamedIterator(iter(self._parent), self._name)


class _NamedIterator(grain.DatasetIterator):
    def __init__(self, batches: grain.DatasetIterator, name: str):
        super().__init__(batches)
        self._name = name

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._parent)

    def get_state(self) -> dict[str, Any]:
        return {**self._parent.get_state(), "batches": self._name}

    def set_state(self, state: dict[str, Any]) -> None:
        name = state.get("batches")
        if name != self._name:
            raise ValueError(
                f"the data iterator's state is of {name}, but this is {self._name}: "
                "resume with the data set and settings it was saved with, or start "
                "in another folder"
            )
        self._parent.set_state(state)


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Return the full batches in one epoch; a smaller rest is left out.

    Raises:
        ValueError: the batch size is not between 1 and the number of examples.
    """
    if not 1 <= batch_size <= len(source):
        raise ValueError(
            f"batch_size must be 1 to {len(source)} (the examples of {source.name}), "
            f"got {batch_size}"
        )
    return len(source) // batch_size


def batches(
    source: Source, batch_size: int, *, epochs: int, seed: int | None = 0
) -> grain.IterDataset:
    """Return a grain data set of batches; its iterators' state can be saved.

    Every batch holds the source's arrays and ``index``, the examples' positions. The
    same seed gives the same batches in the same order. With several processes, each
    gets its part of every batch.

    Args:
        source: the examples.
        batch_size: of all processes together.
        epochs: passes over the source.
        seed: of the order, new in each epoch; None keeps the source's order.

    Raises:
        ValueError: a batch size that does not fit the source or the processes, or no
            epochs.
    """
    steps_per_epoch(source, batch_size)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    processes, process = jax.process_count(), jax.process_index()
    if batch_size % processes:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {processes} processes: "
            f"use a multiple of {processes}"
        )
    whole: Any = _Batches(source, batch_size, epochs, seed)
    data = grain.MapDataset.source(whole)
    if processes > 1:
        part = slice(process, None, processes)
        data = data.map(lambda batch: {k: v[part] for k, v in batch.items()})
    # One thread reads ahead; more would make the order of permutations a race.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return _Named(data.to_iter_dataset(options), repr(whole))
