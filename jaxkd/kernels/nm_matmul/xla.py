"""The products of N:M sparse weights, one place of the groups at a time.

At any time one plane of the dense weights exists: the entries at one place of the
groups whose places share bits of a byte, 1/16 of the weights for 2:4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.kernels.nm_matmul.packing import (
    NMWeights,
    entries_at,
    place_bits,
    unpack_places,
)


def product(
    x: Float[Array, "tokens inputs"], weights: NMWeights
) -> Float[Array, "tokens outputs"]:
    """Return ``x·W``."""
    planes = to_planes(x, weights)
    total = 0
    for part, (values, places) in enumerate(_parts(weights)):
        for place in range(weights.m):
            dense = entries_at(place, values, places, weights.m)
            total = total + _multiply(planes[place, part], dense.astype(x.dtype), 1, 0)
    return jnp.asarray(total).astype(x.dtype)


def transposed_product(
    y: Float[Array, "tokens outputs"], weights: NMWeights
) -> Float[Array, "tokens inputs"]:
    """Return ``y·Wᵀ``."""
    planes = [
        [
            _multiply(
                y,
                entries_at(place, values, places, weights.m).astype(y.dtype),
                1,
                1,
            ).astype(y.dtype)
            for values, places in _parts(weights)
        ]
        for place in range(weights.m)
    ]
    return from_planes(jnp.stack([jnp.stack(parts) for parts in planes]), weights)


def values_gradient(
    x: Float[Array, "tokens inputs"],
    gradient: Float[Array, "tokens outputs"],
    weights: NMWeights,
) -> Float[Array, "n rows outputs"]:
    """Return the kept entries of ``xᵀ·gradient``, in the order of the values."""
    planes = to_planes(x, weights)
    found = []
    for part, (values, places) in enumerate(_parts(weights)):
        # What entries_at takes apart, its transpose puts together.
        total = jnp.zeros_like(values)
        for place in range(weights.m):
            dense = _multiply(planes[place, part], gradient, 0, 0)
            _, collect = jax.vjp(
                lambda v, place=place, places=places: entries_at(
                    place, v, places, weights.m
                ),
                values,
            )
            total = total + collect(dense.astype(values.dtype))[0]
        found.append(total)
    return jnp.stack(found, axis=1).reshape(weights.values.shape)


def split(weights: NMWeights) -> Float[Array, "n parts bytes outputs"]:
    """Return the values by the bits of a byte that hold their places."""
    n, rows, outputs = weights.values.shape
    parts = 8 // place_bits(weights.m)
    return weights.values.reshape(n, parts, rows // parts, outputs)


def to_planes(
    x: Float[Array, "tokens inputs"], weights: NMWeights
) -> Float[Array, "m parts tokens bytes"]:
    """Return the inputs by their place in a group, in the order of `split`."""
    rows = weights.values.shape[1]
    x = jnp.pad(x, ((0, 0), (0, rows * weights.m - x.shape[1])))
    parts = 8 // place_bits(weights.m)
    return x.reshape(len(x), parts, -1, weights.m).transpose(3, 1, 0, 2)


def from_planes(
    planes: Float[Array, "m parts tokens bytes"], weights: NMWeights
) -> Float[Array, "tokens inputs"]:
    """Undo `to_planes`."""
    tokens = planes.shape[2]
    x = planes.transpose(2, 1, 3, 0).reshape(tokens, -1)
    return x[:, : weights.inputs]


def _parts(weights: NMWeights) -> list[tuple[Array, Array]]:
    """Return values and places, (n, bytes, outputs) each, of each bits of a byte."""
    values, places = split(weights), unpack_places(weights.places, weights.m)
    return [(values[:, part], places[:, part]) for part in range(values.shape[1])]


def _multiply(left: Array, right: Array, axis: int, other: int) -> Array:
    """Return the product summed over an axis of each, in float32 at least."""
    work = jnp.promote_types(left.dtype, jnp.float32)
    dimensions = (((axis,), (other,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=work)
