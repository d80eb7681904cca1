"""Batches handed to the device ahead of the step that needs them."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from jaxkd.arguments import checked
from jaxkd.types import Batch


@checked()
class Prefetch(Iterator):
    """An iterator's batches, each placed ``size`` batches before it is returned.

    Placing is asynchronous in JAX, so batches travel while the device computes. The
    state is that of the batch returned last: what was read ahead is read again.

    Args:
        iterator: any; with ``get_state`` and ``set_state`` this has them too.
        place: ``batch -> batch`` on the device.
        size: batches on the device at most, the one being used among them.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, iterator: Any, place: Callable[[Batch], Batch], size: int = 2):
        if size < 1:
            raise ValueError(f"size must be at least 1 batch, got {size}")
        self._iterator, self._place, self._size = iterator, place, size
        self._ahead: deque[tuple[Batch, Any]] = deque()
        self._where = getattr(iterator, "get_state", lambda: None)
        self._state = self._where()

    def __next__(self) -> Batch:
        """Return the next batch on the device."""
        self._read_ahead(self._size)
        if not self._ahead:
            raise StopIteration
        batch, self._state = self._ahead.popleft()
        return batch

    def peek(self) -> Batch | None:
        """Return the batch that is returned next, or None at the end."""
        self._read_ahead(1)
        return self._ahead[0][0] if self._ahead else None

    def _read_ahead(self, size: int) -> None:
        while len(self._ahead) < size:
            try:
                batch = next(self._iterator)
            except StopIteration:
                return
            self._ahead.append((self._place(batch), self._where()))

    def get_state(self) -> Any:
        """Return the place after the batch returned last."""
        return self._state

    def set_state(self, state: Any) -> None:
        """Go on after the place of a state."""
        self._iterator.set_state(state)
        self._ahead.clear()
        self._state = state
