"""Any iterable of dict batches as an iterator that, if it can, says where it is."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jaxkd.arguments import checked, own_check
from jaxkd.types import Batch


@checked(batches=own_check)
def batch_iterator(batches: Iterable[Any], repeat: bool) -> Iterator[Any]:
    """Return an iterator over batches, with ``get_state`` and ``set_state`` if it can.

    Grain's iterators have them, and may end. A sequence's state is the number of
    batches read. Of another iterable, nobody knows where it is.

    Args:
        batches: any iterable.
        repeat: begin again at the end, for ever. Grain data do not: how often they are
            read is theirs to say (``epochs``). What can be read once only cannot.

    Raises:
        ValueError: not an iterable, or one dict, whose items are no batches.
    """
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise ValueError(
            f"batches is a {type(batches).__name__}, but must be an iterable of dicts "
            "of arrays: a list of them, a generator, a data loader, or what "
            "data.batches makes of a source such as data.Source(name, arrays, classes)"
        )
    if isinstance(batches, grain.DataLoader):
        return _GrainLoader(batches)
    if isinstance(batches, Sequence):
        return _Places(batches, repeat)
    iterator = iter(batches)
    if iterator is batches or not repeat or resumable(iterator):
        return iterator
    return _rounds(batches)


@checked()
def resumable(iterator: Iterator[Any]) -> bool:
    """Return whether an iterator can say where it is, and go on from there."""
    return hasattr(iterator, "get_state") and hasattr(iterator, "set_state")


def array_batch(batch: Any) -> Batch:
    """Return a batch whose leaves are all arrays, of NumPy or JAX.

    Lists and other libraries' tensors become NumPy's arrays.

    Raises:
        ValueError: not a dict, or it holds what is no array of numbers.
    """
    if not isinstance(batch, Mapping):
        items = batch if isinstance(batch, tuple | list) else ()
        of = f" of {', '.join(type(item).__name__ for item in items)}" if items else ""
        raise ValueError(
            f"a batch is a {type(batch).__name__}{of}, but must be a dict of arrays "
            'such as {"image": x, "label": y}: let the loader make dicts, as by its '
            'collate_fn, or pass ({"image": x, "label": y} for x, y in loader)'
        )
    return jax.tree_util.tree_map_with_path(
        _as_array, dict(batch), is_leaf=lambda x: isinstance(x, list)
    )


def _as_array(path: Any, value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        name = f"batch{jax.tree_util.keystr(path)}"
        raise ValueError(f"{name} is no array: {error}") from None
    if array.dtype.kind in "OSUMm":
        kind = type(array.flat[0]).__name__ if array.size else "nothing"
        raise ValueError(
            f"batch{jax.tree_util.keystr(path)} holds {kind}, not numbers: leave it "
            "out of the batch, or turn it into an array of numbers first"
        )
    return array


class _Places(Iterator):
    """The place in a sequence of batches, which may be begun again at its end."""

    def __init__(self, batches: Sequence[Any], repeat: bool):
        self._batches, self._repeat, self._read = batches, repeat, 0

    def __next__(self) -> Any:
        size = len(self._batches)
        if not size or (self._read >= size and not self._repeat):
            raise StopIteration
        batch = self._batches[self._read % size]
        self._read += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"batches_read": self._read}

    def set_state(self, state: dict[str, int]) -> None:
        self._read = state["batches_read"]


class _GrainLoader(Iterator):
    """A grain ``DataLoader``'s iterator: its state is JSON, but as bytes."""

    def __init__(self, loader: grain.DataLoader):
        self._iterator: Any = iter(loader)

    def __next__(self) -> Any:
        return next(self._iterator)

    def get_state(self) -> str:
        return self._iterator.get_state().decode()

    def set_state(self, state: str) -> None:
        self._iterator.set_state(state.encode())


def _rounds(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches over and over, until there are none."""
    empty = False
    while not empty:
        empty = True
        for batch in batches:
            yield batch
            empty = False
