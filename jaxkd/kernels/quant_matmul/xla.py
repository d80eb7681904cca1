"""The product with quantised weights, dequantised within the product itself."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.kernels.quant_matmul.activations import round_activations
from jaxkd.kernels.quant_matmul.weights import QuantizedWeights, dequantize


def product(
    x: Float[Array, "tokens inputs"],
    weights: QuantizedWeights,
    *,
    activations: str | None,
) -> Float[Array, "tokens outputs"]:
    """Return ``x·W``."""
    if activations is not None:
        return _rounded_product(x, weights, activations)
    return _multiply(x, dequantize(weights, x.dtype).astype(x.dtype))


def transposed_product(
    y: Float[Array, "tokens outputs"], weights: QuantizedWeights
) -> Float[Array, "tokens inputs"]:
    """Return ``y·Wᵀ``."""
    return _multiply(y, dequantize(weights, y.dtype).astype(y.dtype), transposed=True)


def _rounded_product(x: Array, weights: QuantizedWeights, kind: str) -> Array:
    """Return the product of codes, a group of inputs at a time, scaled afterwards."""
    codes, scale = round_activations(x, kind)
    groups, outputs = weights.scale.shape
    sums = jnp.int32 if kind == "int8" else jnp.float32

    def add(total: Array, group: tuple) -> tuple[Array, None]:
        left, right, of_group, zero = group
        found = jnp.dot(left, right.astype(left.dtype), preferred_element_type=sums)
        if zero is not None:
            found = found - left.astype(sums).sum(-1, keepdims=True) * zero.astype(sums)
        return total + found.astype(total.dtype) * of_group.astype(total.dtype), None

    by_group = (
        codes.reshape(len(x), groups, -1).swapaxes(0, 1),
        weights.codes.reshape(groups, -1, outputs),
        weights.scale,
        weights.zero,
    )
    start = jnp.zeros((len(x), outputs), scale.dtype)
    total = jax.lax.scan(add, start, by_group)[0]
    return (total * scale).astype(x.dtype)


def _multiply(left: Array, right: Array, transposed: bool = False) -> Array:
    """Return left·right or left·rightᵀ, summed in float32 at least."""
    work = jnp.promote_types(left.dtype, jnp.float32)
    dimensions = (((1,), (1 if transposed else 0,)), ((), ()))
    out = jax.lax.dot_general(left, right, dimensions, preferred_element_type=work)
    return out.astype(left.dtype)
