"""BERT and its kin: encoders of text, with heads to classify it or fill in its blanks.

BERT (Devlin et al. 2018, arXiv:1810.04805); RoBERTa (Liu et al. 2019, arXiv:1907.11692)
counts positions from another number, over real tokens alone; DistilBERT (Sanh et al.
2019, arXiv:1910.01108) has no types of tokens; ELECTRA (Clark et al. 2020,
arXiv:2003.10555) may have narrower embeddings; Longformer and BigBird have sparse
attention, see `jaxkd.models.language.sparse_attention`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps, unchanged
from jaxkd.arguments import checked, count, positive
from jaxkd.checks import unknown_name
from jaxkd.kernels.dispatch import Implementation
from jaxkd.models.language.encoder_blocks import (
    ACTIVATIONS,
    Block,
    Config,
    Embeddings,
    Form,
    Head,
    Variant,
    mean_of_tokens,
    tied_logits,
)
from jaxkd.models.language.random_blocks import drawn_blocks
from jaxkd.models.language.sequence import READS, Everywhere, sequence
from jaxkd.models.language.sparse_attention import global_tokens
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.stack import block_taps, run_stack, stacked
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain
from jaxkd.types import Outputs

POOLED = {"distilbert": "relu", "electra": "gelu", "big_bird": "gelu_tanh"}
"""Activations of the layer before a sequence's classes; the others' is tanh."""


class BERT(nnx.Module):
    """Embeddings, blocks, and a head.

    Taps: ``embed`` (after its norm), ``block0`` … and ``final`` (the last block's),
    (batch, length, width); ``block{i}.attn``, what a block's attention adds;
    ``mean_pooled`` (batch, width), the mean of ``final`` over the real tokens, which
    sentence embeddings are; ``pooled`` (batch, width) where there is a pooler: a layer
    and its activation on the first token's features, which a sequence's class is read
    from.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config, width, head = config, config.width, config.head
        self.embeddings = Embeddings(config, rngs=rngs)
        self.blocks = stacked(
            lambda rngs: Block(config, rngs=rngs), config.layers, rngs=rngs
        )
        self.pooler = config.linear(width, width, rngs=rngs) if config.pooler else None
        if head == "masked_lm":
            narrow = config.embedding_width
            self.transform = config.linear(width, narrow, rngs=rngs)
            self.transform_norm = config.norm(narrow, rngs=rngs)
            self.bias = nnx.Param(jnp.zeros(config.vocabulary))
        elif head is not None:
            if head == "replaced_tokens":
                self.transform = config.linear(width, width, rngs=rngs)
            axes = "embed", "vocabulary"
            classes = 1 if head == "replaced_tokens" else config.classes
            self.head = config.linear(width, classes, axes, rngs=rngs)
        blocks = block_taps(config.layers, "", ".attn")
        pooled = ("pooled",) if config.pooler else ()
        self.taps = ("embed", *blocks, "final", "mean_pooled", *pooled)
        self.cuts = ("embed", *block_taps(config.layers, ""), "final")

    def __call__(
        self,
        inputs: Mapping[str, Any] | None,
        *,
        train: bool = False,
        steps: Steps | None = None,
    ) -> Outputs:
        """Return the head's logits, None without a head, and the features asked for.

        Args:
            inputs: ``input_ids`` (batch, length); ``attention_mask`` (batch, length), 0
                for padding; ``token_type_ids`` (batch, length), without which all are
                of type 0; ``segment_ids`` (batch, length) of packed sequences, which do
                not see one another; ``position_ids`` (batch, length), rows of the table
                of positions; ``global_attention_mask`` (batch, length), 1 for tokens
                that see and are seen beyond the window of a sliding one; without it the
                first token where a sequence is classified, else none.
            train: whether blocks of sparse attention see random others.
            steps: of the forward pass.

        Raises:
            ValueError: ``input_ids`` that are missing, have another shape or exceed the
                table of positions.
        """
        steps, inputs = steps or Steps(), inputs or {}
        x = steps("embed", self.embeddings, inputs)
        tokens = replace(
            sequence(inputs, x.shape, None),
            everywhere=self._everywhere(inputs, x.shape[:2]),
            random_blocks=self._random_blocks(x.shape[1], train),
        )

        def run(block: Block, x: Array, _: Any, number: Array, tap: Callable):
            x = constrain(x, "batch", "length", None)
            return block(x, tokens, number, partial(tap, ".attn")), None

        scan, remat = self.config.scan, self.config.remat
        x, _ = run_stack(self.blocks, run, x, None, steps, scan=scan, remat=remat)
        x = steps("final", unchanged, x)
        return steps.outputs(self._logits, x, inputs, steps)

    def _everywhere(
        self, inputs: Mapping[str, Any], shape: tuple[int, ...]
    ) -> Everywhere | None:
        mask, config = inputs.get("global_attention_mask"), self.config
        if mask is None and config.head == "sequence_classification":
            mask = jnp.zeros(shape, jnp.int32).at[:, 0].set(1)
        if mask is None or config.attention != "sliding_window":
            return None
        return global_tokens(mask, config.global_tokens)

    def _random_blocks(self, length: int, train: bool) -> Array | None:
        config = self.config
        if config.attention != "block_sparse":
            return None
        blocks = drawn_blocks(
            length,
            config.block,
            config.random_blocks,
            (config.layers, config.heads),
            config.positions,
            train,
        )
        return None if blocks is None else jnp.asarray(blocks)

    def _logits(
        self, x: Array, inputs: Mapping[str, Any], steps: Steps
    ) -> Array | None:
        steps.tap("mean_pooled", mean_of_tokens(x, inputs.get("attention_mask")))
        config, pooled = self.config, x[:, 0]
        if self.pooler is not None:
            pooled = ACTIVATIONS[config.pooled](self.pooler(pooled))
            pooled = steps.tap("pooled", pooled)
        activation = ACTIVATIONS[config.activation]
        match config.head:
            case None:
                return None
            case "sequence_classification":
                return self.head(pooled)
            case "token_classification":
                return self.head(x)
            case "replaced_tokens":
                return self.head(activation(self.transform(x)))[..., 0]
        x = self.transform_norm(activation(self.transform(x)))
        return tied_logits(x, self.embeddings.embed, self.bias[...])


@checked()
def has_pooler(head: Head | None, variant: Variant, pooler: bool) -> bool:
    """Return whether such a model has a pooler; see `bert`."""
    if head is None:
        return pooler and variant not in ("distilbert", "electra")
    return head == "sequence_classification" or variant == "big_bird"


@checked(
    epsilon=positive, window=count, global_tokens=count, block=count, positions=count
)
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
    variant: Variant = "bert",
    pooler: bool = True,
    types: int = 2,
    first_position: int = 0,
    embedding_width: int | None = None,
    attention: Form = "full",
    window: int = 512,
    global_tokens: int = 64,
    block: int = 64,
    random_blocks: int = 3,
    epsilon: float = 1e-12,
    scan: bool = True,
    remat: bool = False,
    implementation: Implementation = "auto",
) -> Network:
    """Return BERT, RoBERTa, DistilBERT, ELECTRA, Longformer or BigBird.

    Args:
        vocabulary: tokens that there are.
        positions: rows of the table of positions.
        width: features of the residual stream.
        layers: transformer blocks.
        heads: of the attention.
        hidden: width of the MLPs.
        head: what the logits are of: the sequence or each of its tokens, (…, classes),
            what stands at each token, (batch, length, vocabulary), or whether it was
            replaced, as ELECTRA tells it, (batch, length); None for an encoder without
            logits.
        classes: logits of the classification heads.
        variant: whose the activations and the files' names are.
        pooler: whether an encoder without a head has one, but DistilBERT and ELECTRA,
            which do not; the head of a sequence has it in any case, BigBird always,
            other heads do not.
        types: of tokens, which tell a pair's sentences apart; 0 for none: DistilBERT's.
        first_position: row of the table that a sequence starts at: RoBERTa's and
            Longformer's 2.
        embedding_width: of the tables; None for ``width``.
        attention: which tokens see which: all, those in a window (and global ones), or
            whole blocks; the memory of the latter two grows with the length.
        window: of a sliding one, even: half of it on each side, as Longformer has it.
        global_tokens: that a sequence of a sliding window has at most. In a compiled
            program a sequence with more has NaN in place of features.
        block: tokens of a block of sparse attention. Up to ``(5 + 2·random_blocks)``
            blocks the attention is full, as BigBird's.
        random_blocks: others that a block sees; see
            `jaxkd.models.language.random_blocks.drawn_blocks`.
        epsilon: of the norms.
        scan: whether the blocks are one compiled loop; else they are unrolled.
        remat: whether blocks are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.

    Raises:
        ValueError: heads that do not divide the width, an unknown name, a first
            position beyond the others, or an odd window.
    """
    if width % heads:
        raise ValueError(f"width {width} must be a multiple of the {heads} heads")
    named = {"head": (head, Head), "variant": (variant, Variant)}
    named["attention"] = attention, Form
    for name, (given, known) in named.items():
        if given is not None and given not in get_args(known):
            raise ValueError(unknown_name(name, given, get_args(known)))
    if first_position >= positions:
        raise ValueError(
            f"first_position {first_position} must be below the {positions} positions"
        )
    if window % 2:
        raise ValueError(
            f"window {window} must be even: half of it lies on each side of a token"
        )
    of_sequence = head == "sequence_classification"
    config = Config(
        vocabulary=vocabulary,
        positions=positions,
        width=width,
        layers=layers,
        heads=heads,
        hidden=hidden,
        head=head,
        classes=classes,
        pooler=has_pooler(head, variant, pooler),
        types=types,
        first_position=first_position,
        embedding_width=embedding_width or width,
        activation="gelu_tanh" if variant == "big_bird" else "gelu",
        pooled=POOLED.get(variant, "tanh") if of_sequence else "tanh",
        attention=attention,
        window=window,
        global_tokens=global_tokens,
        block=block,
        random_blocks=random_blocks,
        epsilon=epsilon,
        scan=scan,
        remat=remat,
        implementation=implementation,
    )
    reads = [*READS]
    if types:
        reads.append("token_type_ids")
    if attention == "sliding_window":
        reads.append("global_attention_mask")
    return Network.from_nnx(lambda rngs: BERT(config, rngs=rngs), reads=tuple(reads))
