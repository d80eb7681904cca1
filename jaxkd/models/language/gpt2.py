"""GPT-2: a decoder-only language model with learned positions.

Radford et al. 2019, "Language models are unsupervised multitask learners".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.models.language.cache import KVCache
from jaxkd.models.language.self_attention import SelfAttention
from jaxkd.models.language.sequence import (
    READS,
    Sequence,
    open_cache,
    sequence,
    token_ids,
)
from jaxkd.models.parts.linear import Linear, on_rows
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.stack import block_taps, run_stack, stacked
from jaxkd.models.parts.tokens import layer_norm
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain, declare
from jaxkd.types import Outputs

normal = nnx.initializers.normal
SCALE = 0.02
"""Deviation of the normal with which weights start."""


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
        width, hidden, into = config.width, config.hidden, ("embed", "hidden")
        start, end = normal(SCALE), normal(config.last_scale)
        self.up = Linear(width, hidden, axes=into, kernel_init=start, rngs=rngs)
        self.down = Linear(hidden, width, axes=into[::-1], kernel_init=end, rngs=rngs)

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
    ) -> tuple[Array, Array, KVCache | None]:
        """Return the output, the attention's before it was added, and the cache."""
        attended, cache = self.attention(self.attention_norm(x), tokens, cache, layer)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), attended, cache


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

    def __call__(
        self, inputs: Mapping[str, Any], *, taps: tuple[str, ...] = ()
    ) -> Outputs:
        """Return logits (batch, length, vocabulary), and the features asked for.

        Args:
            inputs: as `jaxkd.models.language.llama.Llama` takes them.
            taps: see the class.

        Raises:
            ValueError: ``input_ids`` that are missing, have another shape or exceed the
                table of positions, a cache without room for them, or one of packed
                sequences.
        """
        ids, config = token_ids(inputs), self.config
        embedded = self.embed.embedding[...][ids]
        dim = config.width // config.heads
        sizes = config.layers, config.heads, dim, embedded.dtype
        cache = open_cache(inputs, taps, *sizes)
        tokens = sequence(inputs, cache)
        self._check_length(ids, inputs, cache)
        x = embedded + self.positions.embedding[...][tokens.positions]
        features = {"embed": x}

        def step(block: Block, carry: Any, layer: Array):
            x, cache = carry
            x = constrain(x, "batch", "length", None)
            x, attended, cache = block(x, tokens, cache, layer)
            return (x, cache), {"": x, ".attn": attended}

        (x, cache), found = run_stack(
            self.blocks,
            step,
            (x, cache),
            taps=taps,
            scan=config.scan,
            remat=config.remat,
        )
        features |= found
        if (kept := inputs.get("logits_to_keep")) is not None:
            x = x[:, kept]
        x = self.norm(x)
        head = self.embed.embedding[...].T if config.tied else self.head.kernel[...]
        head = head.astype(x.dtype)
        logits = on_rows(lambda x: x @ head, x)
        logits = constrain(logits, "batch", None, "vocabulary")
        features |= {"final": x, "head": head}
        if cache is not None:
            features["cache"] = cache.passed(ids.shape[1])
        return Outputs(logits, {tap: features[tap] for tap in taps})

    def _check_length(
        self, ids: Array, inputs: Mapping[str, Any], cache: KVCache | None
    ) -> None:
        """Refuse more tokens than positions; those of packed sequences start anew."""
        length = ids.shape[1] if cache is None else cache.real.shape[1]
        packed = cache is None and inputs.get("position_ids") is not None
        if length > self.config.positions and not packed:
            raise ValueError(
                f"input_ids, with its cache, is {length} tokens long, but this model "
                f"knows {self.config.positions} positions: cut the sequences"
            )


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
    implementation: str = "auto",
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
