"""Mamba-2: a language model that keeps one state instead of every token.

Dao and Gu 2024 (arXiv:2405.21060), with the weights and the arithmetic of Hugging
Face's ``Mamba2ForCausalLM``. A layer's state has the same size after any number of
tokens, so generating costs no more at the end of a long text than at its start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxkd.adapters import Steps, Tap
from jaxkd.arguments import checked, positive
from jaxkd.kernels.dispatch import Implementation
from jaxkd.kernels.ssd import SSD, ssd, ssd_step
from jaxkd.models.language.recurrent import (
    CausalConv,
    GatedNorm,
    RecurrentCache,
    Tokens,
)
from jaxkd.models.language.sequence import (
    kept_norm,
    token_ids,
    vocabulary_outputs,
)
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.stack import block_taps, run_stack, stacked
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain, declare
from jaxkd.types import Outputs

normal = nnx.initializers.normal(0.02)
FORGET = -40.0
"""Logarithm of the decay where another sequence starts: below what float32 can see, yet
small enough to be summed with decays that can be seen."""


@checked(epsilon=positive)
@dataclass(frozen=True)
class Config:
    """The sizes and switches of one model.

    Attributes:
        vocabulary: tokens that there are.
        width: features of the residual stream.
        layers: blocks.
        heads: of the recurrence, each with its own decay.
        head_dim: features of a head.
        state_size: numbers that a head keeps of each of its features.
        groups: heads of one group share what writes to the state and reads it.
        window: tokens that the convolution before the recurrence sees, itself included.
        bias: whether the two projections have biases.
        conv_bias: whether the convolution has one.
        time_step_limit: least and greatest time step.
        epsilon: of the norms.
        float32_residual: whether the residual stream is float32 whatever the weights.
        tied: whether the head is the embedding.
        scan: whether the blocks are one compiled loop; else they are unrolled.
        remat: whether a block's activations are computed anew in the backward pass.
        implementation: of the recurrence; see `jaxkd.kernels`.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    head_dim: int
    state_size: int
    groups: int
    window: int
    bias: bool
    conv_bias: bool
    time_step_limit: tuple[float, float]
    epsilon: float
    float32_residual: bool
    tied: bool
    scan: bool
    remat: bool
    implementation: str

    @property
    def parts(self) -> tuple[int, int]:
        """Features that the recurrence reads, and those of each of its b and c."""
        return self.heads * self.head_dim, self.groups * self.state_size


class Mixer(nnx.Module):
    """A projection, a short convolution, the recurrence, a gate, and a projection."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        inner, shared = config.parts
        channels = inner + 2 * shared

        def linear(features_in: int, features: int, axes: tuple[str, str]) -> Linear:
            return Linear(
                features_in,
                features,
                axes=axes,
                use_bias=config.bias,
                kernel_init=normal,
                rngs=rngs,
            )

        projected = inner + channels + config.heads
        self.in_projection = linear(config.width, projected, ("embed", "heads"))
        self.conv = CausalConv(channels, config.window, config.conv_bias, rngs=rngs)
        self.time_bias = nnx.Param(_time_bias(rngs.params(), config.heads))
        rates = jnp.arange(1, config.heads + 1, dtype=jnp.float32)
        self.log_rate = nnx.Param(jnp.log(rates))
        self.skip = nnx.Param(jnp.ones(config.heads))
        self.norm = GatedNorm(inner, config.groups, config.epsilon)
        self.out = linear(inner, config.width, ("heads", "embed"))

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Tokens,
        kept: RecurrentCache | None,
    ) -> tuple[Float[Array, "batch length width"], RecurrentCache]:
        """Return what every token takes from itself and those before it, and the cache.

        Args:
            x: features, normalised.
            tokens: what is known of them.
            kept: this layer's cache; None at the start of a sequence.
        """
        config = self.config
        inner, shared = config.parts
        projected = self.in_projection(tokens.zero_padding(x))
        gate, mixed, steps = jnp.split(projected, [inner, -config.heads], axis=-1)
        mixed, window = self.conv(mixed, None if kept is None else kept.window, tokens)
        mixed = tokens.zero_padding(jax.nn.silu(mixed))
        values, b, c = jnp.split(mixed, [inner, inner + shared], axis=-1)
        values = rearrange(values, "b l (h d) -> b l h d", d=config.head_dim)
        values = constrain(values, "batch", None, "heads", None)
        b, c = (rearrange(y, "b l (g s) -> b l g s", g=config.groups) for y in (b, c))

        work = jnp.promote_types(x.dtype, jnp.float32)
        steps = jax.nn.softplus(steps.astype(work) + self.time_bias[...].astype(work))
        steps = jnp.clip(steps, *config.time_step_limit)
        log_decay = -jnp.exp(self.log_rate[...].astype(work)) * steps
        starts = tokens.starts()
        if starts is not None:
            log_decay = jnp.where(starts[..., None], FORGET, log_decay)
        written = (values * steps[..., None]).astype(values.dtype)
        state = None if kept is None else kept.state
        read = self.recur(written, log_decay, b, c, state)
        out = read.out + self.skip[...].astype(values.dtype)[:, None] * values
        out = self.norm(rearrange(out, "b l h d -> b l (h d)"), gate)
        return self.out(out), RecurrentCache(window, read.state)

    def recur(
        self,
        x: Float[Array, "batch length heads dim"],
        log_decay: Float[Array, "batch length heads"],
        b: Float[Array, "batch length groups size"],
        c: Float[Array, "batch length groups size"],
        state: Float[Array, "batch heads dim size"] | None,
    ) -> SSD:
        """Return the recurrence's outputs and last state, as `jaxkd.kernels.ssd`."""
        if state is not None and x.shape[1] == 1:
            read = ssd_step(state, x[:, 0], log_decay[:, 0], b[:, 0], c[:, 0])
            return read._replace(out=read.out[:, None])
        implementation = self.config.implementation
        return ssd(x, log_decay, b, c, state=state, implementation=implementation)


def _time_bias(key: PRNGKeyArray, heads: int) -> Float[Array, " heads"]:
    """Return softplus⁻¹ of time steps spread evenly in log from 0.001 to 0.1."""
    low, high = jnp.log(0.001), jnp.log(0.1)
    steps = jnp.exp(jax.random.uniform(key, (heads,), minval=low, maxval=high))
    return steps + jnp.log(-jnp.expm1(-steps))


class Block(nnx.Module):
    """A mixer, normalised before and added after."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(config.width, epsilon=config.epsilon, rngs=rngs)
        self.mixer = Mixer(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Tokens,
        kept: RecurrentCache | None,
        tap: Tap,
    ) -> tuple[Float[Array, "batch length width"], RecurrentCache]:
        """Return the output and the cache; ``tap`` gets what the mixer adds."""
        dtype = self.mixer.norm.scale[...].dtype
        mixed, kept = self.mixer(self.norm(x).astype(dtype), tokens, kept)
        return x + tap(mixed).astype(x.dtype), kept


class Mamba2(nnx.Module):
    """Embedding, blocks, norm, head.

    Taps: ``embed``, ``block0`` … and ``final`` (after the last norm), (batch, length,
    width); ``block{i}.mixer``, what a block's mixer adds, as ``block{i}.attn`` is of
    transformers; ``head``, the output projection (width, vocabulary); ``cache``, a
    `RecurrentCache` of the tokens read, to go on from.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(
            config.vocabulary,
            config.width,
            embedding_init=normal,
            embedding_metadata=declare("vocabulary", "embed"),
            rngs=rngs,
        )
        self.blocks = stacked(
            lambda rngs: Block(config, rngs=rngs), config.layers, rngs=rngs
        )
        self.norm = nnx.RMSNorm(config.width, epsilon=config.epsilon, rngs=rngs)
        if not config.tied:
            self.head = Linear(
                config.width,
                config.vocabulary,
                axes=("embed", "vocabulary"),
                use_bias=False,
                kernel_init=normal,
                rngs=rngs,
            )
        blocks = block_taps(config.layers, "", ".mixer")
        self.taps = ("embed", *blocks, "final", "head", "cache")
        self.cuts = ("embed", *block_taps(config.layers, ""), "final")

    def __call__(
        self, inputs: Mapping[str, Any] | None, *, steps: Steps | None = None
    ) -> Outputs:
        """Return logits (batch, length, vocabulary), and the features asked for.

        Args:
            inputs: ``input_ids`` (batch, length); ``attention_mask`` (batch, length), 0
                for padding, which comes first where tokens are to follow; of packed
                sequences ``segment_ids`` (batch, length), none of which sees another;
                ``cache``, what was read before these tokens; ``logits_to_keep``, places
                of the tokens whose ``final`` and logits alone are returned.
            steps: of the forward pass.

        Raises:
            ValueError: ``input_ids`` that are missing or have another shape.
        """
        steps, inputs, config = steps or Steps(), inputs or {}, self.config
        x = steps("embed", lambda: self.embed.embedding[...][token_ids(inputs)])
        dtype, cache = self.embed.embedding[...].dtype, inputs.get("cache")
        if cache is None and "cache" in steps.taps:
            cache = self._empty(len(x), x.dtype)
        tokens = Tokens(
            *(
                None if inputs.get(name) is None else jnp.asarray(inputs[name])
                for name in ("attention_mask", "segment_ids")
            )
        )

        def run(block: Block, x: Array, cache: Any, layer: Array, tap: Callable):
            x = constrain(x, "batch", "length", None)
            kept = None if cache is None else cache.layer(layer)
            x, kept = block(x, tokens, kept, partial(tap, ".mixer"))
            return x, None if cache is None else cache.put(layer, kept)

        if config.float32_residual:
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scan, remat = config.scan, config.remat
        x, cache = run_stack(self.blocks, run, x, cache, steps, scan=scan, remat=remat)
        if cache is not None:
            steps.tap("cache", cache)
        x = steps("final", lambda: kept_norm(self.norm, x, inputs).astype(dtype))
        head = self.embed.embedding[...].T if config.tied else self.head.kernel[...]
        return vocabulary_outputs(steps, x, head)

    def _empty(self, batch: int, dtype: Any) -> RecurrentCache:
        """Return what is kept before the first token."""
        config = self.config
        inner, shared = config.parts
        window = config.layers, batch, config.window - 1, inner + 2 * shared
        state = config.layers, batch, config.heads, config.head_dim, config.state_size
        work = jnp.promote_types(dtype, jnp.float32)
        return RecurrentCache(
            constrain(jnp.zeros(window, dtype), None, "batch", None, "heads"),
            constrain(jnp.zeros(state, work), None, "batch", "heads", None, None),
        )


@checked(epsilon=positive)
@recorded
def mamba2(
    vocabulary: int,
    width: int,
    layers: int,
    *,
    heads: int | None = None,
    head_dim: int = 64,
    state_size: int = 128,
    groups: int = 1,
    window: int = 4,
    bias: bool = False,
    conv_bias: bool = True,
    time_step_limit: tuple[float, float] = (0.0, float("inf")),
    epsilon: float = 1e-5,
    float32_residual: bool = True,
    tied: bool = False,
    scan: bool = True,
    remat: bool = False,
    implementation: Implementation = "auto",
) -> Network:
    """Return a Mamba-2 language model; see `Config` for the arguments.

    Args:
        vocabulary: tokens that there are.
        width: features of the residual stream.
        layers: blocks.
        heads: of the recurrence; None for as many as make twice the width.
        head_dim: features of a head.
        state_size: numbers that a head keeps of each of its features.
        groups: of heads that share what writes to the state and reads it.
        window: tokens that the convolution sees.
        bias: whether the two projections have biases.
        conv_bias: whether the convolution has one.
        time_step_limit: least and greatest time step.
        epsilon: of the norms.
        float32_residual: whether the residual stream is float32 whatever the weights.
        tied: whether the head is the embedding.
        scan: whether the blocks are one compiled loop.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the recurrence.

    Raises:
        ValueError: a ``head_dim`` that does not divide twice the width, or groups that
            do not divide the heads.
    """
    if heads is None and 2 * width % head_dim:
        raise ValueError(
            f"width {width} twice is no multiple of head_dim {head_dim}: give heads"
        )
    heads = 2 * width // head_dim if heads is None else heads
    if heads % groups:
        raise ValueError(f"heads {heads} must be a multiple of groups {groups}")
    low, high = time_step_limit
    config = Config(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        state_size=state_size,
        groups=groups,
        window=window,
        bias=bias,
        conv_bias=conv_bias,
        time_step_limit=(low, high),
        epsilon=epsilon,
        float32_residual=float32_residual,
        tied=tied,
        scan=scan,
        remat=remat,
        implementation=implementation,
    )
    reads = "input_ids", "attention_mask", "segment_ids"
    return Network.from_nnx(lambda rngs: Mamba2(config, rngs=rngs), reads=reads)
