"""Weights with a low-rank adapter, as layers that multiply by them get them."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.kernels.quant_matmul import QuantizedWeights, dequantize


@flax.struct.dataclass
class AdaptedWeights:
    """A weight W of (inputs, outputs) that counts as W + A·diag(scale)·B.

    With a magnitude m (DoRA, Liu et al. 2024, arXiv:2402.09353, Eq. 5) it counts as
    m·(that)/c, where c are the norms of that weight's columns, taken as constants.
    All arrays may have further axes before these, of layers stacked for a scan.

    Attributes:
        base: W, an array or `QuantizedWeights`.
        a: (inputs, rank).
        b: (rank, outputs).
        scale: (rank,); 0 where a layer has a lower rank than others.
        magnitude: (outputs,); None for no such factor.
        key: of the dropout, in training; None for none.
        dropout: share of the inputs that A does not see, static.
    """

    base: Any
    a: Any
    b: Any
    scale: Any
    magnitude: Any = None
    key: Any = None
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)

    def low(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Return x·A·diag(scale)·B in x's dtype; the matrix A·B is not made."""
        if self.key is not None:
            kept = jax.random.bernoulli(self.key, 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)
        a, b, scale = (y.astype(x.dtype) for y in (self.a, self.b, self.scale))
        return (x @ a * scale) @ b

    def ratio(self) -> Float[Array, "... outputs"]:
        """Return m/c, 1 for a layer without an adapter; A·B is not made for c either.

        c² = Σ W² + 2·Σ (AᵀW)∘B + Σ (AᵀA·B)∘B, summed over the inputs, with B scaled.
        """
        base, a, b = jax.lax.stop_gradient(
            (plain_weights(self.base), self.a, self.scale[..., None] * self.b)
        )
        base = base.astype(jnp.promote_types(base.dtype, jnp.float32))
        transposed = jnp.swapaxes(a, -1, -2).astype(base.dtype)
        crossed = 2 * (transposed @ base) + transposed @ a @ b
        squares = jnp.square(base).sum(-2) + (crossed * b).sum(-2)
        there = (self.scale > 0).any(-1, keepdims=True)
        return jnp.where(there, self.magnitude / jnp.sqrt(squares), 1)

    def dense(self) -> Float[Array, "... inputs outputs"]:
        """Return the weight that this counts as, in W's dtype."""
        base = plain_weights(self.base)
        work = jnp.promote_types(base.dtype, jnp.float32)
        whole = base.astype(work) + self.a * self.scale[..., None, :] @ self.b
        if self.magnitude is not None:
            whole = whole * self.ratio()[..., None, :]
        return whole.astype(base.dtype)

    def __getitem__(self, index: Any) -> Array:
        """Return ``dense()[index]``, for layers that read the weight themselves."""
        return self.dense()[index]


@checked()
def plain_weights(weights: Any) -> Float[Array, "..."]:
    """Return a weight as an array, whether quantised or not.

    Args:
        weights: an array, or `QuantizedWeights` that may be stacked.
    """
    if not isinstance(weights, QuantizedWeights):
        return weights
    layer = dequantize
    for _ in weights.codes.shape[:-2]:
        layer = jax.vmap(layer)
    return layer(weights)
