"""The blocks of T5's encoder and decoder, and the two stacks of them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.struct
import jax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, positive
from jaxkd.models.language.cache import KVCache
from jaxkd.models.language.relative import RelativeBias
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.stack import block_taps, run_stack, stacked
from jaxkd.sharding.axes import constrain

normal = nnx.initializers.normal


@checked(epsilon=positive)
@dataclass(frozen=True)
class Config:
    """The sizes and switches of one model.

    Attributes:
        vocabulary: tokens that there are.
        width: features of the residual streams.
        layers: blocks of the encoder.
        decoder_layers: blocks of the decoder.
        heads: of the attention.
        head_dim: features of a head.
        hidden: width of the MLPs.
        feed_forward: whether MLPs are ``down(relu(up(x)))`` as in T5, or
            ``down(gelu(gate(x)) * up(x))`` as in T5 1.1.
        buckets: of relative positions.
        max_distance: from which on all positions share a bucket.
        epsilon: of the norms.
        tied: whether the head is the embedding.
        scaled: whether the head is divided by the width's square root, as in T5.
        scan: whether the blocks are one compiled loop; else they are unrolled.
        remat: whether a block's activations are computed anew in the backward pass.
    """

    vocabulary: int
    width: int
    layers: int
    decoder_layers: int
    heads: int
    head_dim: int
    hidden: int
    feed_forward: Literal["relu", "gated-gelu"]
    buckets: int
    max_distance: int
    epsilon: float
    tied: bool
    scaled: bool
    scan: bool
    remat: bool

    def linear(
        self,
        features_in: int,
        features: int,
        axes: tuple[str, str],
        scale: float,
        *,
        rngs: nnx.Rngs,
    ) -> Linear:
        """Return a linear layer that starts as a normal of that deviation."""
        return Linear(
            features_in,
            features,
            axes=axes,
            use_bias=False,
            kernel_init=normal(scale),
            rngs=rngs,
        )

    def norm(self, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
        """Return a root-mean-square norm of the residual stream."""
        return nnx.RMSNorm(self.width, epsilon=self.epsilon, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention whose scores are not scaled: how it starts sees to that."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.head_dim = dim = config.head_dim
        width, inner = config.width, config.heads * dim
        scale = width**-0.5
        into, back = ("embed", "heads"), ("heads", "embed")
        start = (width * dim) ** -0.5
        self.query = config.linear(width, inner, into, start, rngs=rngs)
        self.key = config.linear(width, inner, into, scale, rngs=rngs)
        self.value = config.linear(width, inner, into, scale, rngs=rngs)
        self.out = config.linear(inner, width, back, inner**-0.5, rngs=rngs)

    def memory(self, x: Float[Array, "batch columns width"]) -> tuple[Array, Array]:
        """Return keys and values, (batch, columns, heads, dim)."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def __call__(
        self,
        x: Float[Array, "batch rows width"],
        key: Float[Array, "batch columns heads dim"],
        value: Float[Array, "batch columns heads dim"],
        bias: Float[Array, "1 heads rows columns"] | None,
        seen: Bool[Array, "batch _ columns"] | None,
    ) -> Float[Array, "batch rows width"]:
        """Return what every token gathers.

        Args:
            x: features of the queries, normalised.
            key: from `memory`.
            value: likewise.
            bias: added to the scores.
            seen: keys that queries see; None for all.
        """
        gathered = jax.nn.dot_product_attention(
            self._heads(self.query(x)),
            key,
            value,
            None if bias is None else bias.astype(x.dtype),
            None if seen is None else seen[:, None],
            scale=1.0,
        )
        return self.out(rearrange(gathered, "b l h d -> b l (h d)"))

    def _heads(self, x: Array) -> Array:
        x = rearrange(x, "b l (h d) -> b l h d", d=self.head_dim)
        return constrain(x, "batch", None, "heads", None)


class MLP(nnx.Module):
    """See `Config.feed_forward`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        into, back = ("embed", "hidden"), ("hidden", "embed")
        self.gated = config.feed_forward == "gated-gelu"
        if self.gated:
            self.gate = config.linear(width, hidden, into, width**-0.5, rngs=rngs)
        self.up = config.linear(width, hidden, into, width**-0.5, rngs=rngs)
        self.down = config.linear(hidden, width, back, hidden**-0.5, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return as many features."""
        hidden = self.up(x)
        if self.gated:
            hidden = jax.nn.gelu(self.gate(x), approximate=True) * hidden
        else:
            hidden = jax.nn.relu(hidden)
        return self.down(constrain(hidden, "batch", None, "hidden"))


@flax.struct.dataclass
class T5Cache:
    """What the decoder keeps: its own tokens', and the whole input's.

    Attributes:
        own: keys and values of the decoder's tokens.
        key: (layers, batch, source, heads, dim), of the encoder's.
        value: likewise.
        real: (batch, source), false where the input is padding.
    """

    own: KVCache
    key: Any
    value: Any
    real: Any

    def grown(self, slots: int) -> "T5Cache":
        """Return the cache with room for as many more tokens of the decoder."""
        return dataclasses.replace(self, own=self.own.grown(slots))

    def source(self, layer: Int[Array, ""]) -> tuple[Array, Array]:
        """Return a layer's keys and values of the encoder's tokens."""
        return self.key[layer], self.value[layer]

    def read(self, layer: Int[Array, ""], key: Array, value: Array) -> "T5Cache":
        """Return the cache with a layer's keys and values of the encoder's tokens."""
        return dataclasses.replace(
            self,
            key=self.key.at[layer].set(key),
            value=self.value.at[layer].set(value),
        )


@dataclass(frozen=True)
class Seen:
    """What the tokens of a stack see.

    Attributes:
        bias: (1, heads, rows, columns), added to the scores of self-attention.
        own: (batch, rows or 1, columns), which of the stack's tokens; None for all.
        source: (batch, 1, source), which of the encoder's; None for all.
        encoded: (batch, source, width), these; None in the encoder, and where a cache
            has their keys and values.
    """

    bias: Array
    own: Array | None
    source: Array | None = None
    encoded: Array | None = None


class Block(nnx.Module):
    """Attention, in the decoder attention to the encoder, and an MLP."""

    def __init__(self, config: Config, decoder: bool, *, rngs: nnx.Rngs):
        self.decoder = decoder
        self.attention_norm = config.norm(rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        if decoder:
            self.cross_norm = config.norm(rngs=rngs)
            self.cross = Attention(config, rngs=rngs)
        self.mlp_norm = config.norm(rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        seen: Seen,
        cache: T5Cache | None,
        layer: Int[Array, ""],
        tap: Callable[[str, Array], Array],
    ) -> tuple[Float[Array, "batch length width"], T5Cache | None]:
        """Return the output and the cache.

        Args:
            x: features.
            seen: by the tokens.
            cache: to write to and to read.
            layer: of the cache.
            tap: of ``.attn`` and ``.cross``, what both attentions add.
        """
        y = self.attention_norm(x)
        key, value = self.attention.memory(y)
        if cache is not None:
            own = cache.own.put(layer, key, value)
            key, value = own.layer(layer)
            cache = dataclasses.replace(cache, own=own)
        x = x + tap(".attn", self.attention(y, key, value, seen.bias, seen.own))
        if self.decoder:
            if seen.encoded is not None:
                source = self.cross.memory(seen.encoded)
                cache = None if cache is None else cache.read(layer, *source)
            else:
                assert cache is not None
                source = cache.source(layer)
            y = self.cross_norm(x)
            x = x + tap(".cross", self.cross(y, *source, None, seen.source))
        return x + self.mlp(self.mlp_norm(x)), cache


class Stack(nnx.Module):
    """Blocks that share a relative position bias, and a norm."""

    def __init__(self, config: Config, decoder: bool, *, rngs: nnx.Rngs):
        self.config = config
        layers = config.decoder_layers if decoder else config.layers
        self.relative = RelativeBias(
            config.buckets,
            config.max_distance,
            config.heads,
            both_ways=not decoder,
            scale=config.width**-0.5,
            rngs=rngs,
        )
        self.blocks = stacked(
            lambda rngs: Block(config, decoder, rngs=rngs), layers, rngs=rngs
        )
        self.norm = config.norm(rngs=rngs)
        self.prefix = "" if decoder else "encoder."
        kinds = ("", ".attn", ".cross") if decoder else ("", ".attn")
        own = ("embed", *block_taps(layers, *kinds), "final")
        self.taps = tuple(f"{self.prefix}{tap}" for tap in own)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        seen: Seen,
        steps: Steps,
        cache: T5Cache | None = None,
    ) -> tuple[Float[Array, "batch length width"], T5Cache | None]:
        """Return the normalised features, and the cache.

        Args:
            x: embeddings.
            seen: by the tokens.
            steps: of the forward pass.
            cache: to write to and to read.
        """
        config, name = self.config, self.prefix

        def run(block: Block, x: Array, cache: Any, layer: Array, tap: Callable):
            x = constrain(x, "batch", "length", None)
            return block(x, seen, cache, layer, tap)

        x = steps.tap(f"{name}embed", x)
        x, cache = run_stack(
            self.blocks,
            run,
            x,
            cache,
            steps,
            scan=config.scan,
            remat=config.remat,
            prefix=name,
        )
        return self.norm(x), cache
