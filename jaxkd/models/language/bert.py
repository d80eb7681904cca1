"""BERT and RoBERTa: encoders of text, with heads to classify it or fill in its blanks.

BERT (Devlin et al. 2018, arXiv:1810.04805); RoBERTa (Liu et al. 2019, arXiv:1907.11692)
counts positions from another number, over real tokens alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.adapters import Steps, Tap, unchanged
from jaxkd.arguments import checked, positive
from jaxkd.checks import unknown_name
from jaxkd.kernels.dispatch import Implementation
from jaxkd.models.language.self_attention import SelfAttention
from jaxkd.models.language.sequence import READS, Sequence, sequence, token_ids
from jaxkd.models.parts.linear import Linear, on_rows
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.stack import block_taps, run_stack, stacked
from jaxkd.models.parts.tokens import layer_norm
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain, declare
from jaxkd.types import Outputs

SCALE = 0.02
"""Deviation of the normal with which weights start."""

Head = Literal["sequence_classification", "token_classification", "masked_lm"]


@checked(epsilon=positive)
@dataclass(frozen=True)
class Config:
    """The sizes and switches of one model; see `bert`."""

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

    def norm(self, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
        """Return a layer norm of the residual stream."""
        return layer_norm(self.width, self.epsilon, rngs=rngs)


class MLP(nnx.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        into, back = ("embed", "hidden"), ("hidden", "embed")
        self.up = config.linear(width, hidden, into, rngs=rngs)
        self.down = config.linear(hidden, width, back, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return as many features."""
        hidden = jax.nn.gelu(self.up(x), approximate=False)
        return self.down(constrain(hidden, "batch", None, "hidden"))


class Block(nnx.Module):
    """Attention and an MLP, each added and then normalised."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention = SelfAttention(
            config.width,
            config.heads,
            False,
            (SCALE, SCALE),
            config.implementation,
            rngs=rngs,
        )
        self.attention_norm = config.norm(rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.mlp_norm = config.norm(rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], tokens: Sequence, tap: Tap
    ) -> Float[Array, "batch length width"]:
        """Return the block's output; ``tap`` gets what the attention adds."""
        attended, _ = self.attention(x, tokens)
        x = self.attention_norm(x + tap(attended))
        return self.mlp_norm(x + self.mlp(x))


class Embeddings(nnx.Module):
    """The sum of the embeddings of tokens, positions and token types, normalised."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.first_position = config.first_position
        self.embed, self.positions, self.types = (
            nnx.Embed(
                rows,
                config.width,
                embedding_init=nnx.initializers.normal(SCALE),
                embedding_metadata=axes,
                rngs=rngs,
            )
            for rows, axes in (
                (config.vocabulary, declare("vocabulary", "embed")),
                (config.positions, {}),
                (config.types, {}),
            )
        )
        self.norm = config.norm(rngs=rngs)

    def __call__(self, inputs: Mapping[str, Any]) -> Float[Array, "batch length width"]:
        """Return the features of every token."""
        ids = token_ids(inputs)
        positions = inputs.get("position_ids")
        if positions is None:
            positions = self._positions(ids, inputs.get("attention_mask"))
        kinds = inputs.get("token_type_ids")
        kinds = jnp.zeros_like(ids) if kinds is None else jnp.asarray(kinds)
        x = self.embed.embedding[...][ids] + self.types.embedding[...][kinds]
        return self.norm(x + self.positions.embedding[...][jnp.asarray(positions)])

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


class BERT(nnx.Module):
    """Embeddings, blocks, and a head.

    Taps: ``embed`` (after its norm), ``block0`` … and ``final`` (the last block's),
    (batch, length, width); ``block{i}.attn``, what a block's attention adds;
    ``mean_pooled`` (batch, width), the mean of ``final`` over the real tokens, which
    sentence embeddings are; ``pooled`` (batch, width) where there is a pooler: a layer
    and tanh on the first token's features, which a sequence's class is read from.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config, width = config, config.width
        self.embeddings = Embeddings(config, rngs=rngs)
        self.blocks = stacked(
            lambda rngs: Block(config, rngs=rngs), config.layers, rngs=rngs
        )
        self.pooler = config.linear(width, width, rngs=rngs) if config.pooler else None
        if config.head == "masked_lm":
            self.transform = config.linear(width, width, rngs=rngs)
            self.transform_norm = config.norm(rngs=rngs)
            self.bias = nnx.Param(jnp.zeros(config.vocabulary))
        elif config.head is not None:
            axes = "embed", "vocabulary"
            self.head = config.linear(width, config.classes, axes, rngs=rngs)
        blocks = block_taps(config.layers, "", ".attn")
        pooled = ("pooled",) if config.pooler else ()
        self.taps = ("embed", *blocks, "final", "mean_pooled", *pooled)
        self.cuts = ("embed", *block_taps(config.layers, ""), "final")

    def __call__(
        self, inputs: Mapping[str, Any] | None, *, steps: Steps | None = None
    ) -> Outputs:
        """Return the head's logits, None without a head, and the features asked for.

        Args:
            inputs: ``input_ids`` (batch, length); ``attention_mask`` (batch, length), 0
                for padding; ``token_type_ids`` (batch, length), without which all are
                of type 0; ``segment_ids`` (batch, length) of packed sequences, which do
                not see one another; ``position_ids`` (batch, length), rows of the table
                of positions.
            steps: of the forward pass.

        Raises:
            ValueError: ``input_ids`` that are missing, have another shape or exceed the
                table of positions.
        """
        steps, inputs = steps or Steps(), inputs or {}
        x = steps("embed", self.embeddings, inputs)
        tokens = sequence(inputs, x.shape, None)

        def run(block: Block, x: Array, _: Any, number: Array, tap: Callable):
            x = constrain(x, "batch", "length", None)
            return block(x, tokens, partial(tap, ".attn")), None

        scan, remat = self.config.scan, self.config.remat
        x, _ = run_stack(self.blocks, run, x, None, steps, scan=scan, remat=remat)
        x = steps("final", unchanged, x)
        return steps.outputs(self._logits, x, inputs, steps)

    def _logits(
        self, x: Array, inputs: Mapping[str, Any], steps: Steps
    ) -> Array | None:
        steps.tap("mean_pooled", _mean(x, inputs.get("attention_mask")))
        pooled = None
        if self.pooler is not None:
            pooled = steps.tap("pooled", jnp.tanh(self.pooler(x[:, 0])))
        head = self.config.head
        if head is None:
            return None
        if head != "masked_lm":
            return self.head(x if pooled is None else pooled)
        x = jax.nn.gelu(self.transform(x), approximate=False)
        x = self.transform_norm(x)
        weights = self.embeddings.embed.embedding[...].T.astype(x.dtype)
        logits = on_rows(lambda x: x @ weights, x) + self.bias[...].astype(x.dtype)
        return constrain(logits, "batch", None, "vocabulary")


def _mean(
    x: Float[Array, "batch length width"], mask: Any
) -> Float[Array, "batch width"]:
    """Return the mean over the real tokens, summed in float32 at least."""
    real = jnp.ones(x.shape[:2], bool) if mask is None else jnp.asarray(mask) > 0
    work = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.sum(x.astype(work) * real[..., None], axis=1)
    return (total / jnp.maximum(real.sum(1), 1)[:, None]).astype(x.dtype)


@checked(epsilon=positive)
@recorded
def bert(
    vocabulary: int,
    positions: int,
    width: int,
    layers: int,
    heads: int,
    hidden: int,
    *,
    head: Head | None = "sequence_classification",
    classes: int = 2,
    pooler: bool = True,
    types: int = 2,
    first_position: int = 0,
    epsilon: float = 1e-12,
    scan: bool = True,
    remat: bool = False,
    implementation: Implementation = "auto",
) -> Network:
    """Return BERT or RoBERTa, an encoder of text.

    Args:
        vocabulary: tokens that there are.
        positions: rows of the table of positions.
        width: features of the residual stream.
        layers: transformer blocks.
        heads: of the attention.
        hidden: width of the MLPs.
        head: what the logits are of: the sequence or each of its tokens, (…, classes),
            or what stands at each token, (batch, length, vocabulary); None for an
            encoder without logits.
        classes: logits of the classification heads.
        pooler: whether an encoder without a head has one; the head of a sequence has
            it in any case, the others do not.
        types: of tokens, which tell a pair's sentences apart.
        first_position: row of the table that a sequence starts at: RoBERTa's 2.
        epsilon: of the norms.
        scan: whether the blocks are one compiled loop; else they are unrolled.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.

    Raises:
        ValueError: heads that do not divide the width, or an unknown head.
    """
    if width % heads:
        raise ValueError(f"width {width} must be a multiple of the {heads} heads")
    if head is not None and head not in get_args(Head):
        raise ValueError(unknown_name("head", head, get_args(Head)))
    config = Config(
        vocabulary=vocabulary,
        positions=positions,
        width=width,
        layers=layers,
        heads=heads,
        hidden=hidden,
        head=head,
        classes=classes,
        pooler=pooler if head is None else head == "sequence_classification",
        types=types,
        first_position=first_position,
        epsilon=epsilon,
        scan=scan,
        remat=remat,
        implementation=implementation,
    )
    reads = (*READS, "token_type_ids")
    return Network.from_nnx(lambda rngs: BERT(config, rngs=rngs), reads=reads)
