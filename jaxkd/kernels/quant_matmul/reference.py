"""The product with quantised weights by way of float32 ones: the meaning."""

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
    left = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if activations is not None:
        codes, scale = round_activations(x, activations)
        left = codes.astype(scale.dtype) * scale
    return (left @ dequantize(weights)).astype(x.dtype)


def transposed_product(
    y: Float[Array, "tokens outputs"], weights: QuantizedWeights
) -> Float[Array, "tokens inputs"]:
    """Return ``y·Wᵀ``."""
    work = jnp.promote_types(y.dtype, jnp.float32)
    return (y.astype(work) @ dequantize(weights).T).astype(y.dtype)
