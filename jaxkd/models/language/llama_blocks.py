"""What decoders such as Llama are made of: attention, MLP, and blocks of both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.adapters import Steps, Tap, unchanged
from jaxkd.arguments import checked, positive
from jaxkd.kernels.attention import attention
from jaxkd.models.language.cache import KVCache, attend
from jaxkd.models.language.rope import RopeScaling, frequencies, rotate
from jaxkd.models.language.sequence import Sequence
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.stack import run_stack
from jaxkd.sharding.axes import constrain, on_devices

normal = nnx.initializers.normal(0.02)


@checked(epsilon=positive)
@dataclass(frozen=True)
class Config:
    """The sizes and switches of one model.

    Attributes:
        vocabulary: tokens that there are.
        width: features of the residual stream.
        layers: transformer blocks.
        heads: of the queries.
        kv_heads: of keys and values; each serves ``heads / kv_heads`` query heads.
        hidden: width of the MLPs.
        head_dim: features of a head.
        rope_theta: base of the rotations' frequencies.
        rope_scaling: stretches them to longer contexts, or None.
        epsilon: of the norms.
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether each head's queries and keys are normalised.
        tied: whether the head is the embedding.
        window: tokens that one attends to, itself included; None for all before it.
        scan: whether the blocks are one compiled loop; else they are unrolled, which
            compiles slowly, but lets XLA drop the taps that are not asked for.
        remat: whether a block's activations are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    epsilon: float
    qkv_bias: bool
    qk_norm: bool
    tied: bool
    window: int | None
    scan: bool
    remat: bool
    implementation: str

    @classmethod
    def of(
        cls,
        *,
        width: int,
        heads: int,
        kv_heads: int | None,
        head_dim: int | None,
        rope_scaling: RopeScaling | Mapping[str, Any] | None,
        **others: Any,
    ) -> "Config":
        """Return the configuration of a model from its constructor's arguments.

        Args:
            width: of the residual stream.
            heads: of the queries.
            kv_heads: None for as many as ``heads``.
            head_dim: None for ``width / heads``.
            rope_scaling: or its fields, as a folder's config has them.
            **others: as they are.

        Raises:
            ValueError: sizes that do not fit together.
        """
        kv_heads = heads if kv_heads is None else kv_heads
        if head_dim is None and width % heads:
            raise ValueError(
                f"width {width} is no multiple of {heads} heads: give head_dim"
            )
        head_dim = width // heads if head_dim is None else head_dim
        if heads % kv_heads:
            raise ValueError(f"heads {heads} must be a multiple of kv_heads {kv_heads}")
        if head_dim % 2:
            raise ValueError(
                f"head_dim {head_dim} must be even: features turn in pairs"
            )
        if isinstance(rope_scaling, Mapping):
            rope_scaling = RopeScaling(**rope_scaling)
        return cls(
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope_scaling=rope_scaling,
            **others,
        )

    def linear(
        self,
        features_in: int,
        features: int,
        axes: tuple[str, str],
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
    ) -> Linear:
        """Return a linear layer that starts as a normal of deviation 0.02."""
        return Linear(
            features_in,
            features,
            axes=axes,
            use_bias=bias,
            kernel_init=normal,
            rngs=rngs,
        )

    def norm(self, features: int, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
        """Return a root-mean-square norm."""
        return nnx.RMSNorm(features, epsilon=self.epsilon, rngs=rngs)


@checked()
def by_heads(
    config: Config,
    features: Float[Array, "batch length heads_dim"],
    positions: Int[Array, "batch length"] | None = None,
    norm: nnx.RMSNorm | None = None,
) -> Float[Array, "batch length heads dim"]:
    """Return queries, keys or values by head, normalised, turned to their positions.

    Args:
        config: of the model.
        features: of all heads.
        positions: None for values, which are not turned.
        norm: of each head's features, or None.
    """
    x = rearrange(features, "b l (h d) -> b l h d", d=config.head_dim)
    if norm is not None:
        x = norm(x)
    if positions is not None:
        radians = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        x = rotate(x, positions, radians)
    return constrain(x, "batch", None, "heads", None)


@checked()
def attend_causally(
    config: Config,
    query: Float[Array, "batch length heads dim"],
    key: Float[Array, "batch length kv_heads dim"],
    value: Float[Array, "batch length kv_heads dim"],
    segments: Int[Array, "batch length"] | None,
) -> Float[Array, "batch length heads dim"]:
    """Return causal attention among these tokens alone, each device for its part."""

    def local(query, key, value, segments) -> Array:
        return attention(
            query,
            key,
            value,
            causal=True,
            window=None if config.window is None else config.window - 1,
            segment_ids=segments,
            implementation=config.implementation,
        )

    heads = ("batch", None, "heads", None)
    return on_devices(
        local,
        (query, key, value, segments),
        (heads, heads, heads, ("batch", None)),
    )


class Attention(nnx.Module):
    """Causal self-attention whose key-value heads serve several query heads each."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width, dim, bias = config.width, config.head_dim, config.qkv_bias
        features, shared = config.heads * dim, config.kv_heads * dim
        into, back = ("embed", "heads"), ("heads", "embed")
        self.query = config.linear(width, features, into, bias=bias, rngs=rngs)
        self.key = config.linear(width, shared, into, bias=bias, rngs=rngs)
        self.value = config.linear(width, shared, into, bias=bias, rngs=rngs)
        self.out = config.linear(features, width, back, rngs=rngs)
        norms = config.qk_norm
        self.query_norm = config.norm(dim, rngs=rngs) if norms else None
        self.key_norm = config.norm(dim, rngs=rngs) if norms else None

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Sequence,
        cache: KVCache | None = None,
        layer: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "batch length width"], KVCache | None]:
        """Return what every token gathers from itself and those before it.

        Args:
            x: features, normalised.
            tokens: what is known of them.
            cache: to write keys and values to, and returned.
            layer: of the cache.
        """
        config, positions = self.config, tokens.positions
        query = by_heads(config, self.query(x), positions, self.query_norm)
        key = by_heads(config, self.key(x), positions, self.key_norm)
        value = by_heads(config, self.value(x))
        if cache is not None:
            cache = cache.put(layer, key, value)
        if cache is None or tokens.visible is None:
            gathered = attend_causally(config, query, key, value, tokens.segments)
        else:
            gathered = attend(query, *cache.layer(layer), tokens.visible)
        return self.out(rearrange(gathered, "b l h d -> b l (h d)")), cache


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        into, back = ("embed", "hidden"), ("hidden", "embed")
        self.gate = config.linear(width, hidden, into, rngs=rngs)
        self.up = config.linear(width, hidden, into, rngs=rngs)
        self.down = config.linear(hidden, width, back, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return as many features."""
        hidden = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(hidden, "batch", None, "hidden"))


class Block(nnx.Module):
    """Attention and an MLP, each normalised before and added after."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention_norm = config.norm(config.width, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = config.norm(config.width, rngs=rngs)
        self.mlp = GatedMLP(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Sequence,
        cache: KVCache | None = None,
        layer: int | Int[Array, ""] = 0,
        tap: Tap = unchanged,
    ) -> tuple[Float[Array, "batch length width"], KVCache | None]:
        """Return the output and the cache; ``tap`` gets what the attention adds."""
        attended, cache = self.attention(self.attention_norm(x), tokens, cache, layer)
        x = x + tap(attended)
        return x + self.mlp(self.mlp_norm(x)), cache


@checked()
def run_blocks(
    config: Config,
    blocks: Block,
    x: Float[Array, "batch length width"],
    tokens: Sequence,
    cache: KVCache | None,
    steps: Steps,
) -> tuple[Array, KVCache | None]:
    """Return the features after stacked blocks, and the cache.

    Args:
        config: of the model.
        blocks: stacked.
        x: features before them.
        tokens: what is known of them.
        cache: of which the first layers are these blocks', or None.
        steps: of the forward pass.
    """

    def run(block: Block, x: Array, cache: Any, layer: Array, tap: Callable):
        x = constrain(x, "batch", "length", None)
        return block(x, tokens, cache, layer, partial(tap, ".attn"))

    # The cache is carried, not scanned, so that its slots are written in place.
    return run_stack(blocks, run, x, cache, steps, scan=config.scan, remat=config.remat)
