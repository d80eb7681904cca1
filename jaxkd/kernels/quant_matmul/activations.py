"""Activations rounded as they come, with one scale a token."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.kernels.quant_matmul.weights import KINDS

ACTIVATIONS = ("int8", "fp8")


def round_activations(
    x: Float[Array, "tokens inputs"], kind: str
) -> tuple[Array, Float[Array, "tokens 1"]]:
    """Return codes and the scale of each token; their product is about x."""
    dtype = KINDS[kind]
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    top = jnp.abs(x).max(-1, keepdims=True)
    if kind == "int8":
        scale = jnp.where(top == 0, 1, top / 127)
        return jnp.round(x / scale).astype(dtype), scale
    largest = float(jnp.finfo(dtype).max)
    scale = jnp.where(top == 0, 1, top / largest)
    return jnp.clip(x / scale, -largest, largest).astype(dtype), scale
