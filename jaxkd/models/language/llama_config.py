"""The sizes and switches of a decoder, and what its layers differ in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count, positive
from jaxkd.kernels.attention.scores import Scores
from jaxkd.models.language.rope import Rope, Scaling, frequencies
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.moe import Mixture
from jaxkd.models.parts.recorded import as_record

normal = nnx.initializers.normal(0.02)

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}
Activation = Literal["silu", "gelu_tanh"]

Norms = Literal["before", "after", "both"]


@checked(window=count)
@dataclass(frozen=True)
class AttentionKind:
    """What one layer's attention may have of its own.

    Attributes:
        window: tokens that one attends to, itself included; None for all before it.
        rope: the rotations of its queries and keys; None for none (NoPE, Kazemnejad et
            al. 2023, arXiv:2305.19466).
    """

    window: int | None = None
    rope: Rope | None = field(default_factory=Rope)


@checked()
@dataclass(frozen=True)
class Multipliers:
    """Numbers that activations are multiplied by.

    Attributes:
        embed: of the embeddings.
        scores: of queries' products with keys; None for 1 / √head_dim.
        residual: of what a block adds to the residual stream.
        logits: of the logits; the tap ``head`` has it.
    """

    embed: float = 1.0
    scores: float | None = None
    residual: float = 1.0
    logits: float = 1.0


@checked(scores=positive, logits=positive)
@dataclass(frozen=True)
class SoftCaps:
    """What stays within ± a cap, as ``cap·tanh(x / cap)`` (Gemma 2, arXiv:2408.00118).

    Attributes:
        scores: of attention, or None.
        logits: or None.
    """

    scores: float | None = None
    logits: float | None = None


@checked(rank=count, plain=count, turned=count, value=count, query_rank=count)
@dataclass(frozen=True)
class Latent:
    """Widths of multi-head latent attention (see `latent_attention`).

    Attributes:
        rank: of the latent that keys and values are made of.
        plain: features of a head's queries and keys that are not turned.
        turned: those that are; the keys' are the same for all heads.
        value: features of a head's values, at most those of its keys.
        query_rank: of the latent that queries are made of; None for none.
        interleaved: whether (2i, 2i + 1) are the pairs of features that turn, and not
            (i, i + turned / 2).

    Raises:
        ValueError: values wider than keys.
    """

    rank: int
    plain: int
    turned: int
    value: int
    query_rank: int | None = None
    interleaved: bool = True

    def __post_init__(self):
        if self.value > self.key_dim:
            raise ValueError(
                f"value {self.value} must be at most plain + turned, {self.key_dim}"
            )

    @property
    def key_dim(self) -> int:
        """Features of a head's keys."""
        return self.plain + self.turned


@checked()
def times(multiplier: float, x: Array) -> Array:
    """Return ``multiplier·x``: x itself where there is nothing to multiply."""
    return x if multiplier == 1 else x * multiplier


class ZeroCentredNorm(nnx.Module):
    """A root-mean-square norm whose weights start at 0: it scales by 1 + weight."""

    def __init__(self, features: int, *, epsilon: float, rngs: nnx.Rngs):
        self.scale, self.epsilon = nnx.Param(jnp.zeros(features)), epsilon

    def __call__(self, x: Float[Array, "*axes features"]) -> Array:
        """Return as many features, in x's dtype."""
        work = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = (work**2).mean(-1, keepdims=True)
        scale = 1 + self.scale[...].astype(work.dtype)
        return (work * jax.lax.rsqrt(mean + self.epsilon) * scale).astype(x.dtype)


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
        epsilon: of the norms.
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether each head's queries and keys are normalised; ``"whole"``: those
            of all heads together.
        tied: whether the head is the embedding.
        scan: whether the blocks are one compiled loop; else they are unrolled, which
            compiles slowly, but lets XLA drop the taps that are not asked for.
        remat: whether a block's activations are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.
        attention: the kind of every layer's.
        out_bias: whether the attention's output has a bias.
        sinks: whether each head has a logit without a value.
        activation: of the MLPs.
        norms: whether attention and MLP are normalised before, after (what they add),
            or both.
        zero_centred: whether norms scale by 1 + weight.
        multipliers: of activations.
        soft_caps: of scores and logits.
        latent: of multi-head latent attention; None for the plain one. ``head_dim`` is
            then that of the features that turn.
        mixture: of experts, in the place of MLPs; None for none.
        dense_layers: first layers that have MLPs all the same.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    head_dim: int
    epsilon: float
    qkv_bias: bool
    qk_norm: bool | Literal["whole"]
    tied: bool
    scan: bool
    remat: bool
    implementation: str
    attention: tuple[AttentionKind, ...]
    # Beyond Llama, Mistral and Qwen.
    out_bias: bool = False
    sinks: bool = False
    activation: Activation = "silu"
    norms: Norms = "before"
    zero_centred: bool = False
    multipliers: Multipliers = Multipliers()
    soft_caps: SoftCaps = SoftCaps()
    latent: Latent | None = None
    mixture: Mixture | None = None
    dense_layers: int = 0

    @classmethod
    def of(
        cls,
        *,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int | None,
        head_dim: int | None,
        rope_theta: float,
        rope_scaling: Scaling | Mapping[str, Any] | None,
        window: int | None,
        attention: Sequence[AttentionKind | Mapping[str, Any]] | None = None,
        multipliers: Multipliers | Mapping[str, Any] | None = None,
        soft_caps: SoftCaps | Mapping[str, Any] | None = None,
        latent: Latent | Mapping[str, Any] | None = None,
        mixture: Mixture | Mapping[str, Any] | None = None,
        dense_layers: int = 0,
        **others: Any,
    ) -> "Config":
        """Return the configuration of a model from its constructor's arguments.

        Records may be given as their fields, as a folder's config has them.

        Args:
            width: of the residual stream.
            layers: transformer blocks.
            heads: of the queries.
            kv_heads: None for as many as ``heads``.
            head_dim: None for ``width / heads``.
            rope_theta: of all layers, where ``attention`` does not say.
            rope_scaling: likewise.
            window: likewise.
            attention: the first layers' kinds, which repeat for the others.
            multipliers: None for 1.
            soft_caps: None for none.
            latent: of the attention.
            mixture: of experts.
            dense_layers: without it.
            **others: as they are.

        Raises:
            ValueError: sizes that do not fit together.
        """
        kv_heads = heads if kv_heads is None else kv_heads
        own_latent = as_record(latent, Latent)
        if own_latent is not None:
            kv_heads, head_dim = heads, own_latent.turned
        if dense_layers and (mixture is None or dense_layers >= layers):
            raise ValueError(
                f"dense_layers is {dense_layers}: the first layers of a model with a "
                f"mixture, fewer than all {layers}"
            )
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
        if attention is not None and not 0 < len(attention) <= layers:
            raise ValueError(
                f"attention has {len(attention)} kinds for {layers} layers: give each "
                "layer's, or those that repeat"
            )
        rope = Rope(rope_theta, as_record(rope_scaling, Scaling))
        kinds = attention or [AttentionKind(window, rope)]
        return cls(
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            attention=tuple(
                as_record(kinds[layer % len(kinds)], AttentionKind)
                for layer in range(layers)
            ),
            multipliers=as_record(multipliers or {}, Multipliers),
            soft_caps=as_record(soft_caps or {}, SoftCaps),
            latent=own_latent,
            mixture=as_record(mixture, Mixture),
            dense_layers=dense_layers,
            **others,
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The windows that there are, each once."""
        return tuple(dict.fromkeys(kind.window for kind in self.attention))

    def window_number(self, layer: int | Int[Array, ""]) -> Int[Array, ""]:
        """Return which of `windows` a layer has."""
        numbers = [self.windows.index(kind.window) for kind in self.attention]
        return jnp.asarray(numbers)[layer]

    def rotations(self, layer: int | Int[Array, ""]) -> tuple[Any, Any]:
        """Return a layer's radians and magnitude, for `rotate`.

        They are constants where all layers' are the same. Without rotations the radians
        are 0, which turns nothing.
        """
        found = [
            (np.zeros(self.head_dim // 2, np.float32), 1.0)
            if rope is None
            else (frequencies(self.head_dim, rope.theta, rope.scaling), rope.magnitude)
            for rope in (kind.rope for kind in self.attention)
        ]
        if len({kind.rope for kind in self.attention}) == 1:
            return found[0]
        radians, magnitudes = zip(*found, strict=True)
        scaled = jnp.asarray(magnitudes, jnp.float32)[layer]
        return jnp.asarray(np.stack(radians))[layer], scaled

    @property
    def cached(self) -> tuple[int, int, int]:
        """Heads of a cache, and the widths of its keys and values."""
        if self.latent is None:
            return self.kv_heads, self.head_dim, self.head_dim
        return 1, self.latent.rank + self.latent.turned, 0

    @property
    def scores(self) -> Scores:
        """How queries' products with keys are scored."""
        scale = self.multipliers.scores
        dim = self.head_dim if self.latent is None else self.latent.key_dim
        scale = dim**-0.5 if scale is None else scale
        return Scores(scale, self.soft_caps.scores)

    def linear(
        self,
        features_in: int,
        features: int,
        axes: tuple[str | None, str | None],
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

    def norm(self, features: int, *, rngs: nnx.Rngs) -> Any:
        """Return a root-mean-square norm."""
        kind = ZeroCentredNorm if self.zero_centred else nnx.RMSNorm
        return kind(features, epsilon=self.epsilon, rngs=rngs)
