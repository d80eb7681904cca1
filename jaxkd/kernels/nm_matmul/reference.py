"""The products of N:M sparse weights by way of dense ones: the meaning."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.kernels.nm_matmul.packing import NMWeights, nm_unpack


def product(
    x: Float[Array, "tokens inputs"], weights: NMWeights
) -> Float[Array, "tokens outputs"]:
    """Return ``x·W``."""
    return _multiply(x, nm_unpack(weights).astype(x.dtype))


def transposed_product(
    y: Float[Array, "tokens outputs"], weights: NMWeights
) -> Float[Array, "tokens inputs"]:
    """Return ``y·Wᵀ``."""
    return _multiply(y, nm_unpack(weights).astype(y.dtype).T)


def values_gradient(
    x: Float[Array, "tokens inputs"],
    gradient: Float[Array, "tokens outputs"],
    weights: NMWeights,
) -> Float[Array, "n rows outputs"]:
    """Return the kept entries of ``xᵀ·gradient``, in the order of the values."""
    dense, unpack = jax.vjp(
        lambda values: nm_unpack(dataclasses.replace(weights, values=values)),
        weights.values,
    )
    return unpack(_multiply(x.T, gradient).astype(dense.dtype))[0]


def _multiply(left: Array, right: Array) -> Array:
    work = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.dot(left, right, preferred_element_type=work).astype(left.dtype)
