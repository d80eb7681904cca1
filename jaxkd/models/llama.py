"""Decoder-only language models: Llama, Mistral, Qwen2 and Qwen3.

One network with the switches in which they differ. Llama (Touvron et al. 2023,
arXiv:2302.13971), with the stretched rotations of Llama 3.1 (arXiv:2407.21783); Mistral
(Jiang et al. 2023, arXiv:2310.06825) has a sliding window, Qwen2 (arXiv:2407.10671)
biases in its projections, Qwen3 (arXiv:2505.09388) norms of queries and keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.kernels.attention import attention
from jaxkd.models.axes import constrain, on_devices
from jaxkd.models.linear import Linear
from jaxkd.models.rope import RopeScaling, frequencies, rotate
from jaxkd.types import Network, Outputs

normal = nnx.initializers.normal(0.02)


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

    def linear(
        self, features_in: int, features: int, *, bias: bool = False, rngs: nnx.Rngs
    ) -> Linear:
        """Return a linear layer that starts as a normal of deviation 0.02."""
        return Linear(
            features_in, features, use_bias=bias, kernel_init=normal, rngs=rngs
        )

    def norm(self, features: int, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
        """Return a root-mean-square norm."""
        return nnx.RMSNorm(features, epsilon=self.epsilon, rngs=rngs)


@dataclass(frozen=True)
class Sequence:
    """What blocks know of the tokens beside their features.

    Attributes:
        positions: (batch, length), for the rotations.
        segments: (batch, length), tokens see those of their own segment alone; None
            where all are of one.
    """

    positions: Int[Array, "batch length"]
    segments: Int[Array, "batch length"] | None


class Attention(nnx.Module):
    """Causal self-attention whose key-value heads serve several query heads each."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width, dim, bias = config.width, config.head_dim, config.qkv_bias
        self.query = config.linear(width, config.heads * dim, bias=bias, rngs=rngs)
        self.key = config.linear(width, config.kv_heads * dim, bias=bias, rngs=rngs)
        self.value = config.linear(width, config.kv_heads * dim, bias=bias, rngs=rngs)
        self.out = config.linear(config.heads * dim, width, rngs=rngs)
        if config.qk_norm:
            self.query_norm = config.norm(dim, rngs=rngs)
            self.key_norm = config.norm(dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], tokens: Sequence
    ) -> Float[Array, "batch length width"]:
        """Return what every token gathers from itself and those before it."""
        query, key, value = (
            rearrange(layer(x), "b l (h d) -> b l h d", d=self.config.head_dim)
            for layer in (self.query, self.key, self.value)
        )
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        radians = frequencies(
            self.config.head_dim, self.config.rope_theta, self.config.rope_scaling
        )
        query, key, value = (
            constrain(part, "batch", None, "heads", None)
            for part in (
                rotate(query, tokens.positions, radians),
                rotate(key, tokens.positions, radians),
                value,
            )
        )
        window = self.config.window

        def attend(query, key, value, segments) -> Array:
            return attention(
                query,
                key,
                value,
                causal=True,
                window=None if window is None else window - 1,
                segment_ids=segments,
                implementation=self.config.implementation,
            )

        heads = ("batch", None, "heads", None)
        gathered = on_devices(
            attend,
            (query, key, value, tokens.segments),
            (heads, heads, heads, ("batch", None)),
        )
        return self.out(rearrange(gathered, "b l h d -> b l (h d)"))


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.gate = config.linear(config.width, config.hidden, rngs=rngs)
        self.up = config.linear(config.width, config.hidden, rngs=rngs)
        self.down = config.linear(config.hidden, config.width, rngs=rngs)

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
        self, x: Float[Array, "batch length width"], tokens: Sequence
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "batch length width"]]:
        """Return the block's output, and the attention's before it was added."""
        attended = self.attention(self.attention_norm(x), tokens)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), attended


class Llama(nnx.Module):
    """Embedding, blocks, norm, head.

    Taps: ``embed``, ``block0`` … and ``final`` (after the last norm), (batch, length,
    width); ``block{i}.attn``, what a block's attention adds; ``head``, the output
    projection (width, vocabulary), for losses that never hold the logits: with
    ``final`` it is all they need, and XLA drops logits that nobody reads.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(
            config.vocabulary, config.width, embedding_init=normal, rngs=rngs
        )

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = config.norm(config.width, rngs=rngs)
        if not config.tied:
            self.head = config.linear(config.width, config.vocabulary, rngs=rngs)
        blocks = [f"block{i}" for i in range(config.layers)]
        attended = [f"{block}.attn" for block in blocks]
        self.taps = ("embed", *blocks, *attended, "final", "head")

    def __call__(
        self, inputs: Mapping[str, Array], *, taps: tuple[str, ...] = ()
    ) -> Outputs:
        """Return logits (batch, length, vocabulary), and the features asked for.

        Args:
            inputs: ``input_ids`` (batch, length); ``attention_mask`` (batch, length), 0
                for padding; of packed sequences ``segment_ids`` (batch, length), which
                do not see one another; ``position_ids`` (batch, length), without which
                positions count from 0.
            taps: see the class.

        Raises:
            ValueError: ``input_ids`` that are missing or have another shape.
        """
        ids = _token_ids(inputs)
        x = self.embed.embedding[...][ids]
        tokens = _sequence(ids, inputs)
        graph, blocks = nnx.split(self.blocks)

        asked = [tap for tap in taps if tap.startswith("block")]
        kinds = {".attn" if tap.endswith(".attn") else "" for tap in asked}

        def step(x: Array, block: Any) -> tuple[Array, dict[str, Array]]:
            x = constrain(x, "batch", "length", None)
            x, attended = nnx.merge(graph, block)(x, tokens)
            found = {"": x, ".attn": attended}
            return x, {kind: found[kind] for kind in kinds}

        features = {"embed": x}
        unroll = 1 if self.config.scan else self.config.layers
        body = jax.checkpoint(step) if self.config.remat else step
        x, found = jax.lax.scan(body, x, blocks, unroll=unroll)
        for kind, stacked in found.items():
            for i in range(self.config.layers):
                features[f"block{i}{kind}"] = stacked[i]
        x = self.norm(x)
        head = (
            self.embed.embedding[...].T if self.config.tied else self.head.kernel[...]
        )
        head = head.astype(x.dtype)
        logits = constrain(x @ head, "batch", None, "vocabulary")
        features |= {"final": x, "head": head}
        return Outputs(logits, {tap: features[tap] for tap in taps})


def _token_ids(inputs: Mapping[str, Array]) -> Int[Array, "batch length"]:
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        given = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise ValueError(
            f"a language model reads a dict with input_ids (batch, length), got {given}"
        )
    ids = jnp.asarray(inputs["input_ids"])
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"input_ids must be integers of shape (batch, length), got {ids.dtype} of "
            f"shape {ids.shape}"
        )
    return ids


def _sequence(ids: Int[Array, "batch length"], inputs: Mapping[str, Array]) -> Sequence:
    positions = inputs.get("position_ids")
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    segments = inputs.get("segment_ids")
    if "attention_mask" in inputs:
        real = jnp.asarray(inputs["attention_mask"], jnp.int32)
        # Padding is a segment of its own.
        segments = real if segments is None else jnp.where(real, segments, -1)
    return Sequence(jnp.asarray(positions), segments)


def llama(
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    hidden: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    rope_theta: float = 10_000.0,
    rope_scaling: RopeScaling | None = None,
    epsilon: float = 1e-6,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    tied: bool = False,
    window: int | None = None,
    scan: bool = True,
    remat: bool = False,
    implementation: str = "auto",
) -> Network:
    """Return a decoder-only language model; see `Config` for the arguments.

    Args:
        vocabulary: tokens that there are.
        width: features of the residual stream.
        layers: transformer blocks.
        heads: of the queries.
        hidden: width of the MLPs.
        kv_heads: of keys and values; None for as many as ``heads``.
        head_dim: features of a head; None for ``width / heads``.
        rope_theta: base of the rotations' frequencies.
        rope_scaling: stretches them to longer contexts.
        epsilon: of the norms.
        qkv_bias: as in Qwen2.
        qk_norm: as in Qwen3.
        tied: whether the head is the embedding.
        window: tokens that one attends to, as in Mistral.
        scan: whether the blocks are one compiled loop.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the attention.

    Raises:
        ValueError: heads that do not divide the width, key-value heads that do not
            divide the heads, or an odd ``head_dim``.
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
        raise ValueError(f"head_dim {head_dim} must be even: features turn in pairs")
    config = Config(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        hidden=hidden,
        head_dim=head_dim,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        epsilon=epsilon,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tied=tied,
        window=window,
        scan=scan,
        remat=remat,
        implementation=implementation,
    )
    return Network.from_nnx(lambda rngs: Llama(config, rngs=rngs))
