"""What recurrent language models are made of: what is kept, and what comes before.

The convolution over the last few tokens and the gated norm are those of Mamba (Gu and
Dao 2023, arXiv:2312.00752) and Mamba-2 (Dao and Gu 2024, arXiv:2405.21060).
"""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxkd.sharding.axes import declare


@flax.struct.dataclass
class RecurrentCache:
    """What a recurrent model keeps of the tokens it has read, as many as they be.

    Attributes:
        window: (layers, batch, window - 1, channels), the last inputs of convolutions.
        state: (layers, batch, heads, head_dim, state_size), at least float32.
    """

    window: Any
    state: Any

    def layer(self, layer: Int[Array, ""]) -> "RecurrentCache":
        """Return a layer's, without the axis of layers."""
        return jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, layer, keepdims=False), self
        )

    def put(self, layer: Int[Array, ""], kept: "RecurrentCache") -> "RecurrentCache":
        """Return the cache with another one of that layer."""
        return jax.tree.map(
            lambda x, new: lax.dynamic_update_index_in_dim(
                x, new.astype(x.dtype), layer, 0
            ),
            self,
            kept,
        )

    def grown(self, slots: int) -> "RecurrentCache":
        """Return this cache: it has room for any number of tokens."""
        return self


@dataclass(frozen=True)
class Tokens:
    """What blocks know of the tokens beside their features.

    Attributes:
        real: (batch, length), 0 for padding; None where there is none.
        segments: (batch, length), which of the packed sequences a token is of; None
            where all are of one.
    """

    real: Array | None
    segments: Int[Array, "batch length"] | None

    def zero_padding(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return features that are 0 for padding, which then leaves no trace."""
        return x if self.real is None else x * self.real[..., None].astype(x.dtype)

    def starts(self) -> Bool[Array, "batch length"] | None:
        """Return where another packed sequence starts, (batch, length)."""
        if self.segments is None:
            return None
        before = jnp.pad(self.segments, ((0, 0), (1, 0)), mode="edge")[:, :-1]
        return self.segments != before


class CausalConv(nnx.Module):
    """A convolution over time of each channel by itself."""

    def __init__(self, channels: int, window: int, bias: bool, *, rngs: nnx.Rngs):
        spread = nnx.initializers.uniform(2 * window**-0.5)
        kernel = spread(rngs.params(), (window, 1, channels)) - window**-0.5
        self.kernel = nnx.Param(kernel, **declare(None, None, "heads"))
        self.bias = nnx.Param(jnp.zeros(channels)) if bias else None

    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        before: Float[Array, "batch window channels"] | None,
        tokens: Tokens,
    ) -> tuple[
        Float[Array, "batch length channels"], Float[Array, "batch window channels"]
    ]:
        """Return the convolved features, and the inputs that the next tokens see.

        Args:
            x: features.
            before: the inputs before them; 0 if None.
            tokens: a token sees none of another packed sequence.
        """
        kernel = self.kernel[...]
        seen, length = len(kernel) - 1, x.shape[1]
        if before is None:
            before = jnp.zeros((x.shape[0], seen, x.shape[2]), x.dtype)
        inputs = jnp.concatenate([before.astype(x.dtype), x], axis=1)
        segments = tokens.segments
        if segments is not None:
            padded = jnp.pad(segments, ((0, 0), (seen, 0)), mode="edge")
        out = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
        for lag in range(seen + 1):
            part = inputs[:, lag : lag + length]
            if segments is not None:
                same = padded[:, lag : lag + length] == segments
                part = jnp.where(same[..., None], part, 0)
            out += part * kernel[lag, 0].astype(out.dtype)
        if self.bias is not None:
            out += self.bias[...].astype(out.dtype)
        return out.astype(x.dtype), inputs[:, length:]


class GatedNorm(nnx.Module):
    """A root-mean-square norm of every group of features, after a gate."""

    def __init__(self, features: int, groups: int, epsilon: float):
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones(features))

    def __call__(
        self,
        x: Float[Array, "batch length features"],
        gate: Float[Array, "batch length features"],
    ) -> Float[Array, "batch length features"]:
        """Return ``norm(x * silu(gate))``."""
        work = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(work) * jax.nn.silu(gate.astype(work))
        y = rearrange(y, "b l (g f) -> b l g f", g=self.groups)
        square = jnp.square(y).mean(-1, keepdims=True)
        y = (y * jax.lax.rsqrt(square + self.epsilon)).reshape(x.shape)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)
