"""Decoder-only language models: Llama, and those that differ from it in switches.

Llama (Touvron et al. 2023, arXiv:2302.13971), with the stretched rotations of Llama 3.1
(arXiv:2407.21783); Mistral (Jiang et al. 2023, arXiv:2310.06825) has a sliding window,
Qwen2 (arXiv:2407.10671) biases in its projections, Qwen3 (arXiv:2505.09388) norms of
queries and keys. Gemma 2 (arXiv:2408.00118) and 3 (arXiv:2503.19786) have layers with
and without a window, norms before and after, and caps; OLMo 2 (arXiv:2501.00656) norms
after, SmolLM3 layers without rotations, Granite multipliers; Phi-3 (arXiv:2404.14219)
is a Llama whose files fuse weights. Mixtral (arXiv:2401.04088) and Qwen3-MoE have
mixtures of experts, gpt-oss (arXiv:2508.10925) attention sinks beside, DeepSeek-V3
(arXiv:2412.19437) latent attention and first layers without experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, positive
from jaxkd.kernels.dispatch import Implementation
from jaxkd.models.language.llama_blocks import Block, run_blocks
from jaxkd.models.language.llama_config import (
    Activation,
    AttentionKind,
    Config,
    Latent,
    Multipliers,
    Norms,
    SoftCaps,
    normal,
    times,
)
from jaxkd.models.language.rope import Scaling
from jaxkd.models.language.sequence import (
    READS,
    kept_norm,
    open_cache,
    sequence,
    token_ids,
    vocabulary_outputs,
)
from jaxkd.models.parts.moe import Mixture
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.stack import block_taps, stacked
from jaxkd.network import Network
from jaxkd.sharding.axes import declare
from jaxkd.types import Outputs


class Llama(nnx.Module):
    """Embedding, blocks, norm, head.

    Taps: ``embed``, ``block0`` … and ``final`` (after the last norm), (batch, length,
    width); ``block{i}.attn``, what a block's attention adds; ``head``, the output
    projection (width, vocabulary), for losses that never hold the logits: with
    ``final`` it is all they need, and XLA drops logits that nobody reads (models whose
    logits are capped lack it); ``block{i}.router``, a mixture's logits (batch, length,
    experts); ``cache``, a `KVCache` of the tokens read, to go on
    from.
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
        dense, plain = config.dense_layers, replace(config, mixture=None)
        if dense:
            self.dense = stacked(lambda rngs: Block(plain, rngs=rngs), dense, rngs=rngs)
        self.blocks = stacked(
            lambda rngs: Block(config, rngs=rngs), config.layers - dense, rngs=rngs
        )
        self.norm = config.norm(config.width, rngs=rngs)
        if not config.tied:
            axes = "embed", "vocabulary"
            self.head = config.linear(config.width, config.vocabulary, axes, rngs=rngs)
        blocks = block_taps(config.layers, "", ".attn")
        head = () if config.soft_caps.logits else ("head",)
        mixed = () if config.mixture is None else block_taps(config.layers, ".router")
        self.taps = ("embed", *blocks, *mixed[dense:], "final", *head, "cache")
        self.cuts = ("embed", *block_taps(config.layers, ""), "final")

    def __call__(
        self, inputs: Mapping[str, Any] | None, *, steps: Steps | None = None
    ) -> Outputs:
        """Return logits (batch, length, vocabulary), and the features asked for.

        Args:
            inputs: ``input_ids`` (batch, length); ``attention_mask`` (batch, length), 0
                for padding; of packed sequences ``segment_ids`` (batch, length), which
                do not see one another; ``position_ids`` (batch, length), without which
                positions count from 0; ``cache``, what was read before these tokens,
                from which positions then count on; ``logits_to_keep``, places of the
                tokens whose ``final`` and logits alone are returned.
            steps: of the forward pass.

        Raises:
            ValueError: ``input_ids`` that are missing or have another shape, a cache
                without room for them, or one of packed sequences.
        """
        steps, inputs, config = steps or Steps(), inputs or {}, self.config
        embedding, multipliers = self.embed.embedding[...], config.multipliers

        def embedded() -> Array:
            return times(multipliers.embed, embedding[token_ids(inputs)])

        x = steps("embed", embedded)
        cache = open_cache(inputs, x, steps.taps, config.layers, *config.cached)
        tokens = sequence(inputs, x.shape, cache, config.windows)
        first = config.dense_layers
        if first:
            x, cache = run_blocks(config, self.dense, x, tokens, cache, steps)
        x, cache = run_blocks(config, self.blocks, x, tokens, cache, steps, first)
        if cache is not None:
            steps.tap("cache", cache.passed(x.shape[1]))
        x = steps("final", kept_norm, self.norm, x, inputs)
        head = embedding.T if config.tied else self.head.kernel[...]
        head = times(multipliers.logits, head)
        return vocabulary_outputs(steps, x, head, config.soft_caps.logits)


@checked(epsilon=positive)
@recorded
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
    rope_scaling: Scaling | Mapping[str, Any] | None = None,
    epsilon: float = 1e-6,
    qkv_bias: bool = False,
    qk_norm: bool | Literal["whole"] = False,
    tied: bool = False,
    window: int | None = None,
    scan: bool = True,
    remat: bool = False,
    implementation: Implementation = "auto",
    attention: Sequence[AttentionKind | Mapping[str, Any]] | None = None,
    out_bias: bool = False,
    sinks: bool = False,
    activation: Activation = "silu",
    norms: Norms = "before",
    zero_centred: bool = False,
    multipliers: Multipliers | Mapping[str, Any] | None = None,
    soft_caps: SoftCaps | Mapping[str, Any] | None = None,
    latent: Latent | Mapping[str, Any] | None = None,
    mixture: Mixture | Mapping[str, Any] | None = None,
    dense_layers: int = 0,
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
        qk_norm: as in Qwen3, or ``"whole"`` as in OLMo 2.
        tied: whether the head is the embedding.
        window: tokens that one attends to, as in Mistral.
        scan: whether the blocks are one compiled loop.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the attention.
        attention: window and rotations of the first layers, which repeat for the
            others, in place of ``window``, ``rope_theta`` and ``rope_scaling``.
        out_bias: as in gpt-oss.
        sinks: as in gpt-oss.
        activation: of the MLPs.
        norms: before attention and MLP, after as in OLMo 2, or both as in Gemma 2.
        zero_centred: as in Gemma.
        multipliers: as in Granite.
        soft_caps: as in Gemma 2.
        latent: as in DeepSeek-V3.
        mixture: as in Mixtral.
        dense_layers: as in DeepSeek-V3.

    Raises:
        ValueError: heads that do not divide the width, key-value heads that do not
            divide the heads, an odd ``head_dim``, or more kinds of attention than
            layers.
    """
    config = Config.of(**locals())
    return Network.from_nnx(lambda rngs: Llama(config, rngs=rngs), reads=READS)
