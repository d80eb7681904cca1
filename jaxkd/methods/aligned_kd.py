"""Distillation between tokenizers, by the spans of text that both networks write."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from jaxkd.arguments import checked
from jaxkd.kernels.linear_distill.divergences import Divergence, forward_kl
from jaxkd.losses.basics import weighted_loss
from jaxkd.losses.spans import aligned_kd_loss
from jaxkd.methods.base import from_loss
from jaxkd.methods.masks import batch_weights
from jaxkd.types import Batch, Method, Outputs

NEEDED = (
    *("label", "teacher_label"),
    *("teacher_student_span_ids", "teacher_span_ids"),
)


@checked()
def aligned_kd(
    common: Integer[np.ndarray, "pairs 2"],
    *,
    divergence: Divergence = forward_kl,
    tail: float = 1.0,
) -> Method:
    """Return the divergence, span by span, of two networks with two tokenizers.

    A span is what both tokenizers write between two places at which both cut the text.
    Its probability is the product of its pieces'; tokens that both tokenizers have are
    compared one by one, and the others by their sorted probabilities, as in `uld`. See
    `jaxkd.losses.aligned_kd_loss`. Batches are those of `jaxkd.data.two_tokenizers`; a
    span counts as its first token does.

    Args:
        common: the tokens that both have, from `jaxkd.data.common_tokens`.
        divergence: such as ``jensen_shannon(0.5)``.
        tail: the weight of the sorted probabilities.

    Raises:
        ValueError: from ``loss``, a batch without the spans.
    """

    def loss(student: Outputs, teacher: Outputs, batch: Batch) -> Any:
        missing = [name for name in NEEDED if name not in batch]
        if missing:
            raise ValueError(
                f"the batch has {sorted(batch)}, but aligned_kd() needs "
                f"{', '.join(missing)}: make it by data.two_tokenizers"
            )
        labels, teacher_labels, spans, teacher_spans = (batch[name] for name in NEEDED)
        weights = batch_weights(batch, spans.shape)
        weights = jnp.ones(spans.shape) if weights is None else weights
        shared, rest, places = aligned_kd_loss(
            student.logits,
            teacher.logits,
            labels,
            teacher_labels,
            spans,
            teacher_spans,
            common,
            divergence,
        )
        rows = jnp.arange(len(spans))[:, None]
        counted = jnp.where(places >= 0, weights[rows, places], 0)
        return weighted_loss(shared + tail * rest, counted)

    return from_loss(loss, name="aligned_kd")
