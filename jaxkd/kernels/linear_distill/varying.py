"""What differs from device to device within ``jax.shard_map``, and what they share."""

from typing import Any

import jax
from jax import lax
from jaxtyping import Array


def varying(tree: Any, *like: Array) -> Any:
    """Return arrays that vary over the mesh axes that any of ``like`` varies over."""
    wanted = frozenset().union(*(jax.typeof(x).mat.varying for x in like))

    def vary(x: Array) -> Array:
        missing = tuple(wanted - jax.typeof(x).mat.varying)
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def summed(total: Array, axis: str | None, like: Array) -> Array:
    """Sum over the vocabulary's axis, unless each device had tokens of its own."""
    if axis is None or axis in jax.typeof(like).mat.varying:
        return total
    return lax.psum(total, axis)


def as_argument(gradient: Array, argument: Array) -> Array:
    """Return a gradient in its argument's dtype, summed over devices that share it."""
    shared = tuple(jax.typeof(gradient).mat.varying - jax.typeof(argument).mat.varying)
    gradient = gradient.astype(argument.dtype)
    return lax.psum(gradient, shared) if shared else gradient
