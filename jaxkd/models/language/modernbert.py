"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): an encoder made as decoders are.

Norms come first, there are no biases, the MLP has a gate, positions turn queries and
keys, and all but every third block see a window.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.adapters import Steps, Tap
from jaxkd.arguments import checked, count, positive
from jaxkd.checks import unknown_name
from jaxkd.kernels.attention import attention
from jaxkd.kernels.dispatch import Implementation
from jaxkd.models.language.encoder_blocks import SCALE, mean_of_tokens, tied_logits
from jaxkd.models.language.rope import frequencies, rotate
from jaxkd.models.language.self_attention import HEADS
from jaxkd.models.language.sequence import READS, Sequence, sequence, token_ids
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.stack import block_taps, run_stack, stacked
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain, declare, on_devices
from jaxkd.types import Outputs

Head = Literal["sequence_classification", "token_classification", "masked_lm"]
Pooling = Literal["cls", "mean"]


@checked(epsilon=positive, rope_theta=positive, local_rope_theta=positive)
@dataclass(frozen=True)
class Config:
    """The sizes and switches of one model; see `modernbert`."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    head: Head | None
    classes: int
    pooling: Pooling
    global_every: int
    window: int
    rope_theta: float
    local_rope_theta: float
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
        """Return a linear layer without biases."""
        init = nnx.initializers.normal(SCALE)
        return Linear(
            features_in,
            features,
            axes=axes,
            use_bias=False,
            kernel_init=init,
            rngs=rngs,
        )

    def norm(self, *, scale: bool = True, rngs: nnx.Rngs) -> nnx.LayerNorm:
        """Return a layer norm without a bias."""
        return nnx.LayerNorm(
            self.width,
            epsilon=self.epsilon,
            use_bias=False,
            use_scale=scale,
            use_fast_variance=False,
            rngs=rngs,
        )


class Attention(nnx.Module):
    """Self-attention with rotations, to all tokens or to those in a window."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config, width = config, config.width
        self.query, self.key, self.value = (
            config.linear(width, width, ("embed", "heads"), rngs=rngs) for _ in range(3)
        )
        self.out = config.linear(width, width, ("heads", "embed"), rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Sequence,
        layer: Int[Array, ""],
    ) -> Float[Array, "batch length width"]:
        """Return what every token gathers in a block of that number."""
        config, heads = self.config, self.config.heads
        parts = [
            constrain(rearrange(part(x), "b l (h d) -> b l h d", h=heads), *HEADS)
            for part in (self.query, self.key, self.value)
        ]

        def gather(theta: float, window: int | None, *parts: Array) -> Array:
            query, key, value = parts
            radians = frequencies(query.shape[-1], theta)
            query, key = (rotate(part, tokens.positions, radians) for part in parts[:2])

            def local(query, key, value, segments) -> Array:
                return attention(
                    query,
                    key,
                    value,
                    window=window,
                    segment_ids=segments,
                    implementation=config.implementation,
                )

            where = (HEADS, HEADS, HEADS, ("batch", None))
            return on_devices(local, (query, key, value, tokens.segments), where)

        gathered = jax.lax.cond(
            layer % config.global_every == 0,
            partial(gather, config.rope_theta, None),
            partial(gather, config.local_rope_theta, config.window // 2),
            *parts,
        )
        return self.out(rearrange(gathered, "b l h d -> b l (h d)"))


class MLP(nnx.Module):
    """down(gelu(gate(x)) * up(x)) (GeGLU, Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        self.gate, self.up = (
            config.linear(width, hidden, ("embed", "hidden"), rngs=rngs)
            for _ in range(2)
        )
        self.down = config.linear(hidden, width, ("hidden", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return as many features."""
        hidden = jax.nn.gelu(self.gate(x), approximate=False) * self.up(x)
        return self.down(constrain(hidden, "batch", None, "hidden"))


class Block(nnx.Module):
    """Attention and an MLP, each added; the first's norm is the model's to apply."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = config.norm(rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        normed: Float[Array, "batch length width"],
        tokens: Sequence,
        layer: Int[Array, ""],
        tap: Tap,
    ) -> Float[Array, "batch length width"]:
        """Return the block's output; ``tap`` gets what the attention adds."""
        x = x + tap(self.attention(normed, tokens, layer))
        return x + self.mlp(self.mlp_norm(x))


class ModernBERT(nnx.Module):
    """Embeddings, blocks, a norm, and a head.

    Taps: ``embed`` (after its norm) and ``block0`` …, (batch, length, width);
    ``block{i}.attn``, what a block's attention adds; ``final``, after the last norm;
    ``mean_pooled`` (batch, width), its mean over the real tokens; ``pooled`` (batch,
    width), what a sequence's class is read from, where that is the head.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config, width = config, config.width
        self.embed = nnx.Embed(
            config.vocabulary,
            width,
            embedding_init=nnx.initializers.normal(SCALE),
            embedding_metadata=declare("vocabulary", "embed"),
            rngs=rngs,
        )
        self.embed_norm = config.norm(rngs=rngs)
        self.blocks = stacked(
            lambda rngs: Block(config, rngs=rngs), config.layers, rngs=rngs
        )
        # The embeddings' norm is the first block's.
        self.attention_norm = config.norm(scale=False, rngs=rngs)
        self.attention_scales = nnx.Param(jnp.ones((config.layers - 1, width)))
        self.norm = config.norm(rngs=rngs)
        if config.head is not None:
            self.transform = config.linear(width, width, rngs=rngs)
            self.transform_norm = config.norm(rngs=rngs)
        if config.head == "masked_lm":
            self.bias = nnx.Param(jnp.zeros(config.vocabulary))
        elif config.head is not None:
            self.head = Linear(
                width, config.classes, axes=("embed", "vocabulary"), rngs=rngs
            )
        blocks = block_taps(config.layers, "", ".attn")
        pooled = ("pooled",) if config.head == "sequence_classification" else ()
        self.taps = ("embed", *blocks, "final", "mean_pooled", *pooled)
        self.cuts = ("embed", *block_taps(config.layers, ""), "final")

    def __call__(
        self, inputs: Mapping[str, Any] | None, *, steps: Steps | None = None
    ) -> Outputs:
        """Return the head's logits, None without a head, and the features asked for.

        Args:
            inputs: ``input_ids`` (batch, length); ``attention_mask`` (batch, length), 0
                for padding; ``segment_ids`` (batch, length) of packed sequences, which
                do not see one another; ``position_ids`` (batch, length).
            steps: of the forward pass.

        Raises:
            ValueError: ``input_ids`` that are missing or have another shape.
        """
        steps, inputs, config = steps or Steps(), inputs or {}, self.config
        x = steps("embed", self._embedded, inputs)
        tokens = sequence(inputs, x.shape, None)
        scales = self.attention_scales[...]

        def run(block: Block, x: Array, _: Any, number: Array, tap: Callable):
            x = constrain(x, "batch", "length", None)
            scale = scales[jnp.maximum(number - 1, 0)].astype(x.dtype)
            normed = jnp.where(number == 0, x, self.attention_norm(x) * scale)
            return block(x, normed, tokens, number, partial(tap, ".attn")), None

        x, _ = run_stack(
            self.blocks, run, x, None, steps, scan=config.scan, remat=config.remat
        )
        x = steps("final", self.norm, x)
        return steps.outputs(self._logits, x, inputs, steps)

    def _embedded(self, inputs: Mapping[str, Any]) -> Array:
        return self.embed_norm(self.embed.embedding[...][token_ids(inputs)])

    def _logits(
        self, x: Array, inputs: Mapping[str, Any], steps: Steps
    ) -> Array | None:
        mean = steps.tap("mean_pooled", mean_of_tokens(x, inputs.get("attention_mask")))
        config = self.config
        if config.head is None:
            return None
        if config.head == "sequence_classification":
            pooled = x[:, 0] if config.pooling == "cls" else mean
            return self.head(steps.tap("pooled", self._transformed(pooled)))
        x = self._transformed(x)
        if config.head == "masked_lm":
            return tied_logits(x, self.embed, self.bias[...])
        return self.head(x)

    def _transformed(self, x: Array) -> Array:
        return self.transform_norm(jax.nn.gelu(self.transform(x), approximate=False))


@checked(epsilon=positive, global_every=count)
@recorded
def modernbert(
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    hidden: int,
    *,
    head: Head | None = "sequence_classification",
    classes: int = 2,
    pooling: Pooling = "cls",
    global_every: int = 3,
    window: int = 128,
    rope_theta: float = 160_000.0,
    local_rope_theta: float = 10_000.0,
    epsilon: float = 1e-5,
    scan: bool = True,
    remat: bool = False,
    implementation: Implementation = "auto",
) -> Network:
    """Return ModernBERT, an encoder of text.

    Args:
        vocabulary: tokens that there are.
        width: features of the residual stream.
        layers: transformer blocks, 2 at least.
        heads: of the attention.
        hidden: width of the MLPs.
        head: what the logits are of: the sequence or each of its tokens, (…, classes),
            or what stands at each token, (batch, length, vocabulary); None for an
            encoder without logits.
        classes: logits of the classification heads.
        pooling: whether a sequence's class is read from the first token or the mean.
        global_every: the first of so many blocks sees all tokens, the others a window.
        window: tokens, half of them on each side.
        rope_theta: base of the rotations' frequencies in the blocks that see all.
        local_rope_theta: in the others.
        epsilon: of the norms.
        scan: whether the blocks are one compiled loop; else they are unrolled.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.

    Raises:
        ValueError: sizes that do not fit together, or an unknown name.
    """
    if width % (2 * heads):
        raise ValueError(
            f"width {width} must be a multiple of 2 · {heads} heads: features of a "
            "head turn in pairs"
        )
    if layers < 2:
        raise ValueError(f"layers must be at least 2, got {layers}")
    for name, given, known in (("head", head, Head), ("pooling", pooling, Pooling)):
        if given is not None and given not in get_args(known):
            raise ValueError(unknown_name(name, given, get_args(known)))
    config = Config(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        hidden=hidden,
        head=head,
        classes=classes,
        pooling=pooling,
        global_every=global_every,
        window=window,
        rope_theta=rope_theta,
        local_rope_theta=local_rope_theta,
        epsilon=epsilon,
        scan=scan,
        remat=remat,
        implementation=implementation,
    )
    return Network.from_nnx(lambda rngs: ModernBERT(config, rngs=rngs), reads=READS)
