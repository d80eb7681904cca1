"""Sums in float32 that take no more memory than their bfloat16 result needs.

A float32 is its nearest bfloat16 and the distance to it in float32's last places, 16
bits each. Kept as two arrays, the first of them is the result, so that only the second
is held beside it: a head's gradient, summed over many chunks of tokens, takes half.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


class Halves(NamedTuple):
    """A float32 array in two.

    Attributes:
        nearest: bfloat16, ties away from 0.
        rest: int16, what is missing in units of the float32's last place.
    """

    nearest: Array
    rest: Array


Sum = Halves | Array


def empty_sum(shape: tuple[int, ...], dtype: jnp.dtype) -> Sum:
    """Return 0, to sum arrays of a shape that are wanted in a dtype in the end."""
    if dtype == jnp.bfloat16:
        return Halves(jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int16))
    return jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))


def add_columns(total: Sum, columns: Array, start: Array | int) -> Sum:
    """Return the sum with some columns added, the first of them at ``start``."""
    width = columns.shape[1]

    def read(array: Array) -> Array:
        return lax.dynamic_slice_in_dim(array, start, width, 1)

    def write(array: Array, part: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(array, part, start, 1)

    if not isinstance(total, Halves):
        return write(total, read(total) + columns)
    parts = _split(_join(read(total.nearest), read(total.rest)) + columns)
    return Halves(write(total.nearest, parts.nearest), write(total.rest, parts.rest))


def finished(total: Sum) -> Array:
    """Return the sum, bfloat16 where that was wanted."""
    return total.nearest if isinstance(total, Halves) else total


def _split(x: Array) -> Halves:
    bits = lax.bitcast_convert_type(x, jnp.int32)
    high = (bits + 0x8000) >> 16
    nearest = lax.bitcast_convert_type(high.astype(jnp.int16), jnp.bfloat16)
    return Halves(nearest, (bits - (high << 16)).astype(jnp.int16))


def _join(nearest: Array, rest: Array) -> Array:
    high = lax.bitcast_convert_type(nearest, jnp.int16).astype(jnp.int32)
    return lax.bitcast_convert_type((high << 16) + rest.astype(jnp.int32), jnp.float32)
