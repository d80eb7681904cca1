"""What encoders such as BERT are made of: embeddings, blocks, and ends of heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.adapters import Tap
from jaxkd.arguments import checked, positive
from jaxkd.models.language.self_attention import SelfAttention
from jaxkd.models.language.sequence import Sequence, token_ids
from jaxkd.models.language.sparse_attention import (
    BlockSparseAttention,
    SlidingWindowAttention,
)
from jaxkd.models.parts.linear import Linear, on_rows
from jaxkd.models.parts.tokens import layer_norm
from jaxkd.sharding.axes import constrain, declare

SCALE = 0.02
"""Deviation of the normal with which weights start."""

Head = Literal[
    "sequence_classification", "token_classification", "masked_lm", "replaced_tokens"
]
Form = Literal["full", "sliding_window", "block_sparse"]
Variant = Literal["bert", "roberta", "distilbert", "electra", "longformer", "big_bird"]

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


@checked(epsilon=positive)
@dataclass(frozen=True)
class Config:
    """The sizes and switches of one model; see `jaxkd.models.bert`.

    Attributes beyond its arguments:
        activation: of the MLPs, a key of `ACTIVATIONS`.
        pooled: activation of the pooler, likewise.
    """

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    hidden: int
    head: Head | None
    classes: int
    pooler: bool
    types: int
    first_position: int
    embedding_width: int
    activation: str
    pooled: str
    attention: Form
    window: int
    global_tokens: int
    block: int
    random_blocks: int
    epsilon: float
    scan: bool
    remat: bool
    implementation: str

    def linear(
        self,
        features_in: int,
        features: int,
        axes: tuple[str, str] | None = None,
        *,
        rngs: nnx.Rngs,
    ) -> Linear:
        """Return a linear layer that starts as a normal."""
        init = nnx.initializers.normal(SCALE)
        return Linear(features_in, features, axes=axes, kernel_init=init, rngs=rngs)

    def norm(self, width: int | None = None, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
        """Return a layer norm, of the residual stream or of another width."""
        return layer_norm(width or self.width, self.epsilon, rngs=rngs)

    def self_attention(self, *, rngs: nnx.Rngs) -> SelfAttention:
        """Return a block's attention."""
        sizes = self.width, self.heads, SCALE, self.implementation
        if self.attention == "sliding_window":
            return SlidingWindowAttention(*sizes, window=self.window, rngs=rngs)
        if self.attention == "block_sparse":
            return BlockSparseAttention(*sizes, block=self.block, rngs=rngs)
        width, heads, scale, implementation = sizes
        return SelfAttention(
            width, heads, False, (scale, scale), implementation, rngs=rngs
        )


class MLP(nnx.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.activation = config.activation
        width, hidden = config.width, config.hidden
        into, back = ("embed", "hidden"), ("hidden", "embed")
        self.up = config.linear(width, hidden, into, rngs=rngs)
        self.down = config.linear(hidden, width, back, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return as many features."""
        hidden = ACTIVATIONS[self.activation](self.up(x))
        return self.down(constrain(hidden, "batch", None, "hidden"))


class Block(nnx.Module):
    """Attention and an MLP, each added and then normalised."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention = config.self_attention(rngs=rngs)
        self.attention_norm = config.norm(rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.mlp_norm = config.norm(rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Sequence,
        layer: Int[Array, ""],
        tap: Tap,
    ) -> Float[Array, "batch length width"]:
        """Return the block's output; ``tap`` gets what the attention adds."""
        attended, _ = self.attention(x, tokens, layer=layer)
        x = self.attention_norm(x + tap(attended))
        return self.mlp_norm(x + self.mlp(x))


class Embeddings(nnx.Module):
    """The sum of the embeddings of tokens, positions and token types, normalised.

    Narrower ones than the residual stream are projected to its width.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.first_position = config.first_position
        width = config.embedding_width

        def table(rows: int, axes: Mapping[str, Any]) -> nnx.Embed:
            return nnx.Embed(
                rows,
                width,
                embedding_init=nnx.initializers.normal(SCALE),
                embedding_metadata=axes,
                rngs=rngs,
            )

        self.embed = table(config.vocabulary, declare("vocabulary", "embed"))
        self.positions = table(config.positions, {})
        self.types = table(config.types, {}) if config.types else None
        self.norm = config.norm(width, rngs=rngs)
        narrow = width != config.width
        self.projection = (
            config.linear(width, config.width, rngs=rngs) if narrow else None
        )

    def __call__(self, inputs: Mapping[str, Any]) -> Float[Array, "batch length width"]:
        """Return the features of every token."""
        ids = token_ids(inputs)
        positions = inputs.get("position_ids")
        if positions is None:
            positions = self._positions(ids, inputs.get("attention_mask"))
        x = self.embed.embedding[...][ids]
        if self.types is not None:
            kinds = inputs.get("token_type_ids")
            kinds = jnp.zeros_like(ids) if kinds is None else jnp.asarray(kinds)
            x = x + self.types.embedding[...][kinds]
        x = self.norm(x + self.positions.embedding[...][jnp.asarray(positions)])
        return x if self.projection is None else self.projection(x)

    def _positions(self, ids: Array, mask: Any) -> Int[Array, "batch length"]:
        rows, first = self.positions.num_embeddings, self.first_position
        if ids.shape[1] > rows - first:
            raise ValueError(
                f"input_ids is {ids.shape[1]} tokens long, but this model knows "
                f"{rows - first} positions: cut the sequences"
            )
        if not first or mask is None:
            return jnp.broadcast_to(first + jnp.arange(ids.shape[1]), ids.shape)
        real = jnp.asarray(mask, jnp.int32)
        return first - 1 + jnp.cumsum(real, axis=1) * real


@checked()
def mean_of_tokens(
    x: Float[Array, "batch length width"], mask: Any
) -> Float[Array, "batch width"]:
    """Return the mean over the real tokens, summed in float32 at least.

    Args:
        x: features.
        mask: (batch, length), 0 for padding; None where there is none.
    """
    real = jnp.ones(x.shape[:2], bool) if mask is None else jnp.asarray(mask) > 0
    work = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.sum(x.astype(work) * real[..., None], axis=1)
    return (total / jnp.maximum(real.sum(1), 1)[:, None]).astype(x.dtype)


@checked()
def tied_logits(
    x: Float[Array, "batch length width"],
    embed: nnx.Embed,
    bias: Float[Array, " vocabulary"],
) -> Float[Array, "batch length vocabulary"]:
    """Return what stands at each token, by the embeddings of what may.

    Args:
        x: features of the embeddings' width.
        embed: of the tokens.
        bias: of each.
    """
    weights = embed.embedding[...].T.astype(x.dtype)
    logits = on_rows(lambda x: x @ weights, x) + bias.astype(x.dtype)
    return constrain(logits, "batch", None, "vocabulary")
