"""Batches of a source through grain: shuffled by seed, sharded, resumable."""

import functools
import re
from typing import Any

import grain
import jax
import numpy as np

from jaxkd.arguments import checked, count, integer
from jaxkd.data.conditions import Conditions
from jaxkd.data.sources import Examples, Source
from jaxkd.data.transforms import Transform


class _Batches:
    """A random-access source of whole batches, in a new order every epoch.

    An epoch's order is one permutation, made when its first batch is read: grain's own
    shuffle computes each position alone, which for small data sets took 300 µs an
    example, more than the train step.
    """

    def __init__(
        self,
        source: Examples,
        batch_size: int,
        epochs: int,
        seed: int | None,
        transform: Transform | None,
    ):
        self._source, self._size, self._seed = source, batch_size, seed
        self._per_epoch = len(source) // batch_size
        self._epochs = epochs
        self._transform = transform
        self._order = functools.lru_cache(maxsize=2)(self._permutation)
        # Each process reads and decodes its own rows of every batch, and no others.
        share = batch_size // jax.process_count()
        self._process = jax.process_index()
        self._part = slice(self._process * share, (self._process + 1) * share)

    def __len__(self) -> int:
        return self._per_epoch * self._epochs

    def __repr__(self) -> str:
        # In the iterators' state, to refuse another pipeline's; more epochs of the same
        # one go on. A function's repr holds its address, another in every process.
        transform = re.sub(r" at 0x[0-9a-f]+", "", repr(self._transform))
        return (
            f"Batches({self._source.name}, {len(self._source)} examples with checksum "
            f"{self._source.fingerprint}, size {self._size}, "
            f"seed {self._seed}, transform {transform})"
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._seed is None:
            return np.arange(len(self._source))
        rng = np.random.default_rng([self._seed, epoch])
        return rng.permutation(len(self._source))

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, i = divmod(int(position), self._per_epoch)
        rows = self._order(epoch)[i * self._size : (i + 1) * self._size][self._part]
        rng = np.random.default_rng([self._seed or 0, int(position), self._process, 1])
        batch = self._source.take(rows, rng)
        return batch if self._transform is None else self._transform(batch, rng)


@checked()
class Named(grain.IterDataset):
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

    def __next__(self) -> dict[str, Any]:
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


@checked()
def steps_per_epoch(source: Examples, batch_size: int) -> int:
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


@checked(batch_size=integer, epochs=count)
def batches(
    source: Examples,
    batch_size: int,
    *,
    epochs: int,
    seed: int | None = 0,
    transform: Transform | None = None,
) -> grain.IterDataset:
    """Return a grain data set of batches; its iterators' state can be saved.

    Every batch holds the source's arrays and ``index``, the examples' positions. The
    same seed gives the same batches in the same order. With several processes, process
    p of P gets the p-th of P equal parts of every batch; its transform draws numbers of
    its own.

    Args:
        source: the examples.
        batch_size: of all processes together.
        epochs: passes over the source.
        seed: of the order, new in each epoch; None keeps the source's order.
        transform: of every batch, such as ``Compose((PadCrop(), Flip(), …))``.

    Raises:
        ValueError: a batch size that does not fit the source or the processes, or no
            epochs.
    """
    steps_per_epoch(source, batch_size)
    processes = jax.process_count()
    if batch_size % processes:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {processes} processes: "
            f"use a multiple of {processes}"
        )
    whole: Any = _Batches(source, batch_size, epochs, seed, transform)
    # Slicing arrays is quick; decoding images is not, and leaves Python's lock.
    inner = getattr(source, "source", source)  # of a subset
    quick = isinstance(inner, Source | Conditions)
    threads, ahead = (1, 4) if quick else (16, 16)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    data = grain.MapDataset.source(whole).to_iter_dataset(options)
    return Named(data, repr(whole))


@checked()
def with_validation(
    training: grain.IterDataset,
    validation: Examples,
    batch_size: int,
    *,
    seed: int = 0,
    transform: Transform | None = None,
) -> grain.IterDataset:
    """Return training batches, each with one of other examples in it as ``validation``.

    Programs that train on two splits at once take them (`programs.bilevel`); others
    pass ``validation`` over. The validation examples are gone through again and again.

    Args:
        training: batches of the training examples.
        validation: the other examples.
        batch_size: of both, for the devices share each batch evenly.
        seed: of the validation examples' order.
        transform: of every validation batch.

    Raises:
        ValueError: a batch size that does not fit the validation examples or the
            processes.
    """
    found = batches(
        validation, batch_size, epochs=2**31, seed=seed, transform=transform
    )
    pairs = grain.experimental.ZipIterDataset([training, found], strict=False)
    return pairs.map(lambda pair: {**pair[0], "validation": pair[1]})
