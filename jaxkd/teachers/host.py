"""What a train step asks outside the device: a server, or another tokenizer."""

from collections.abc import Callable
from typing import Any

import jax

from jaxkd.arguments import checked


@checked()
def on_host(function: Callable[..., Any], shapes: Any, *arrays: Any) -> Any:
    """Return what a function of NumPy arrays returns, called from a compiled step.

    Args:
        function: of the arrays.
        shapes: of what it returns, with dtypes.
        *arrays: of the step.

    Raises:
        ValueError: there are several processes, each of which would ask for all.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes train together, but only one can ask "
            "outside the device in a step: train in one process, or distil off-policy "
            "from a cache (teachers.write_teacher_cache)"
        )
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    return jax.pure_callback(
        lambda *given: function(*jax.device_get(given)), like, *arrays
    )
