"""GPT-2: a decoder-only language model with learned positions.

Radford et al. 2019, "Language models are unsupervised multitask learners".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.adapters import Steps, Tap
from jaxkd.arguments import checked, positive
from jaxkd.kernels.dispatch import Implementation
from jaxkd.models.language.cache import KVCache
from jaxkd.models.language.self_attention import SelfAttention
from jaxkd.models.language.sequence import (
    READS,
    Sequence,
    kept_norm,
    open_cache,
    sequence,
    token_ids,
    vocabulary_outputs,
)
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.stack import block_taps, run_stack, stacked
from jaxkd.models.parts.tokens import layer_norm
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain, declare
from jaxkd.types import Outputs

normal = nnx.initializers.normal
SCALE = 0.02
"""Deviation of the normal with which weights start."""


@checked(epsilon=positive)
@dataclass(frozen=True)
class Config:
    """The sizes and switches of one model; see `gpt2`."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    hidden: int
    epsilon: float
    tied: bool
    scan: bool
    remat: bool
    implementation: str

    @property
    def last_scale(self) -> float:
        """Return the deviation of what is added to the residual stream.

        It keeps the stream's variance whatever the depth.
        """
        return SCALE / (2 * self.layers) ** 0.5

    def norm(self, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
        """Return a layer norm of the residual stream."""
        return layer_norm(self.width, self.epsilon, rngs=rngs)


class MLP(nnx.Module):
    """Linear, GELU by its tanh approximation, linear."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        into, back = ("embed", "hidden"), ("hidden", "embed")
        start, end = normal(SCALE), normal(config.last_scale)
        self.up = Linear(width, hidden, axes=into, kernel_init=start, rngs=rngs)
        self.down = Linear(hidden, width, axes=back, kernel_init=end, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return as many features."""
        hidden = jax.nn.gelu(self.up(x), approximate=True)
        return self.down(constrain(hidden, "batch", None, "hidden"))


class Block(nnx.Module):
    """Attention and an MLP, each normalised before and added after."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        scales = SCALE, config.last_scale
        self.attention_norm = config.norm(rngs=rngs)
        self.attention = SelfAttention(
            config.width, config.heads, True, scales, config.implementation, rngs=rngs
        )
        self.mlp_norm = config.norm(rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Sequence,
        cache: KVCache | None,
        layer: Int[Array, ""],
        tap: Tap,
    ) -> tuple[Array, KVCache | None]:
        """Return the output and the cache; ``tap`` gets what the attention adds."""
        attended, cache = self.attention(self.attention_norm(x), tokens, cache, layer)
        x = x + tap(attended)
        return x + self.mlp(self.mlp_norm(x)), cache


class GPT2(nnx.Module):
    """Embeddings of tokens and positions, blocks, norm, head.

    Taps: ``embed``, ``block0`` … and ``final`` (after the last norm), (batch, length,
    width); ``block{i}.attn``, what a block's attention adds; ``head``, the output
    projection (width, vocabulary); ``cache``, a `KVCache` of the tokens read, to go on
    from.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embed, self.positions = (
            nnx.Embed(
                rows,
                config.width,
                embedding_init=normal(SCALE),
                embedding_metadata=axes,
                rngs=rngs,
            )
            for rows, axes in (
                (config.vocabulary, declare("vocabulary", "embed")),
                (config.positions, {}),
            )
        )
        self.blocks = stacked(
            lambda rngs: Block(config, rngs=rngs), config.layers, rngs=rngs
        )
        self.norm = config.norm(rngs=rngs)
        if not config.tied:
            self.head = Linear(
                config.width,
                config.vocabulary,
                axes=("embed", "vocabulary"),
                use_bias=False,
                kernel_init=normal(SCALE),
                rngs=rngs,
            )
        blocks = block_taps(config.layers, "", ".attn")
        self.taps = ("embed", *blocks, "final", "head", "cache")
        self.cuts = ("embed", *block_taps(config.layers, ""), "final")

    def __call__(
        self, inputs: Mapping[str, Any] | None, *, steps: Steps | None = None
    ) -> Outputs:
        """Return logits (batch, length, vocabulary), and the features asked for.

        Args:
            inputs: as `jaxkd.models.language.llama.Llama` takes them.
            steps: of the forward pass.

        Raises:
            ValueError: ``input_ids`` that are missing, have another shape or exceed the
                table of positions, a cache without room for them, or one of packed
                sequences.
        """
        steps, inputs, config = steps or Steps(), inputs or {}, self.config
        x = steps(None, lambda: self.embed.embedding[...][token_ids(inputs)])
        dim = config.width // config.heads
        cache = open_cache(inputs, x, steps.taps, config.layers, config.heads, dim)
        tokens = sequence(inputs, x.shape, cache)
        self._check_length(x.shape[1], inputs, cache)
        x = steps("embed", lambda: x + self.positions.embedding[...][tokens.positions])

        def run(block: Block, x: Array, cache: Any, layer: Array, tap: Callable):
            x = constrain(x, "batch", "length", None)
            return block(x, tokens, cache, layer, partial(tap, ".attn"))

        scan, remat = config.scan, config.remat
        x, cache = run_stack(self.blocks, run, x, cache, steps, scan=scan, remat=remat)
        if cache is not None:
            steps.tap("cache", cache.passed(x.shape[1]))
        x = steps("final", kept_norm, self.norm, x, inputs)
        head = self.embed.embedding[...].T if config.tied else self.head.kernel[...]
        return vocabulary_outputs(steps, x, head)

    def _check_length(
        self, length: int, inputs: Mapping[str, Any], cache: KVCache | None
    ) -> None:
        """Refuse more tokens than positions; those of packed sequences start anew."""
        length = length if cache is None else cache.real.shape[1]
        packed = cache is None and inputs.get("position_ids") is not None
        if length > self.config.positions and not packed:
            raise ValueError(
                f"input_ids, with its cache, is {length} tokens long, but this model "
                f"knows {self.config.positions} positions: cut the sequences"
            )


@checked(epsilon=positive)
@recorded
def gpt2(
    vocabulary: int,
    positions: int,
    width: int,
    layers: int,
    heads: int,
    *,
    hidden: int | None = None,
    epsilon: float = 1e-5,
    tied: bool = True,
    scan: bool = True,
    remat: bool = False,
    implementation: Implementation = "auto",
) -> Network:
    """Return GPT-2, a decoder-only language model.

    Args:
        vocabulary: tokens that there are.
        positions: tokens of the longest sequence.
        width: features of the residual stream.
        layers: transformer blocks.
        heads: of the attention.
        hidden: width of the MLPs; None for four times the width.
        epsilon: of the norms.
        tied: whether the head is the embedding.
        scan: whether the blocks are one compiled loop; else they are unrolled.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.

    Raises:
        ValueError: heads that do not divide the width.
    """
    if width % heads:
        raise ValueError(f"width {width} must be a multiple of the {heads} heads")
    config = Config(
        vocabulary=vocabulary,
        positions=positions,
        width=width,
        layers=layers,
        heads=heads,
        hidden=4 * width if hidden is None else hidden,
        epsilon=epsilon,
        tied=tied,
        scan=scan,
        remat=remat,
        implementation=implementation,
    )
    return Network.from_nnx(lambda rngs: GPT2(config, rngs=rngs), reads=READS)
