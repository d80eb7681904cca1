"""What happens when the machine is taken away: the run is told, saves and leaves."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from jaxkd.arguments import checked

TERMINATED = 128 + signal.SIGTERM
"""The exit status of a run that saved and left; schedulers then start it again."""


@checked()
@contextlib.contextmanager
def preemption(watch: bool) -> Iterator[Callable[[int], bool]]:
    """Yield ``step -> whether to save and leave now``, asked once after every step.

    In one process it is true once SIGTERM has come. With several, JAX's coordination
    service makes it true for all of them at the same step, whichever got the signal.

    Args:
        watch: whether to ask at all; without it SIGTERM ends the process as ever.
    """
    if watch and jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received = threading.Event()
    # Python lets only the main thread set handlers.
    if not watch or threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
