"""Distillation between tokenizers, span by span of the text that both networks write.

A span's tokens write the same text in both networks, in as many pieces as each wants
(`jaxkd.data.align_pieces`). At its beginning each network has a distribution of what
comes next, and the probability of the span itself is the product of its pieces'.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxkd.arguments import checked
from jaxkd.kernels.linear_distill.divergences import Divergence, forward_kl
from jaxkd.losses.basics import absolute, as_float, frozen, log_softmax, logsumexp
from jaxkd.losses.topk import gather_log_probs

FLOOR = float(np.log(np.finfo(np.float32).eps))
"""Log-probability that stands for none: a smaller one has no digits beside 1."""


@checked()
def aligned_kd_loss(
    student_logits: Float[Array, "batch student_length student_vocabulary"],
    teacher_logits: Float[Array, "batch teacher_length teacher_vocabulary"],
    student_labels: Integer[Array, "batch student_length"],
    teacher_labels: Integer[Array, "batch teacher_length"],
    student_spans: Integer[Array, "batch student_length"],
    teacher_spans: Integer[Array, "batch teacher_length"],
    common: Integer[np.ndarray, "pairs 2"],
    divergence: Divergence = forward_kl,
) -> tuple[
    Float[Array, "batch spans"],
    Float[Array, "batch spans"],
    Integer[Array, "batch spans"],
]:
    """Return what two networks differ by in the spans that both write, in two parts.

    At a span's beginning the classes are: the span, with P = Π p(piece | what is
    before it); each other token that both tokenizers have; and all tokens that one of
    them lacks, together. A network's own first piece keeps p(piece) − P, of texts that
    begin with it and go on otherwise. The first part is the divergence of these two
    distributions. The second is ULD's of the tokens that one tokenizer lacks (Boizard
    et al. 2024, arXiv:2402.12030): Σ of the differences of sorted probabilities, the
    shorter filled up with zeros. With one tokenizer for both the first is the
    divergence, token by token, and the second 0.

    Args:
        student_logits: z_s, of the tokens after each.
        teacher_logits: z_t, of the same text in the teacher's tokens.
        student_labels: the tokens that come next.
        teacher_labels: likewise.
        student_spans: the span of each label, from 1 on and in order; 0 for none.
        teacher_spans: likewise, with the student's numbers.
        common: the tokens that both have, (student's, teacher's), see
            `jaxkd.data.common_tokens`.
        divergence: of (log p_t, log p_s), entry by entry.

    Returns:
        Both parts for each span, 0 where there is none; and the place of the student's
        that predicts the span's first token, −1 where there is none.

    Raises:
        ValueError: labels or spans that are not one a logit, or tokens in ``common``
            beyond the logits.
    """
    sides = (
        ("student", as_float(student_logits), student_labels, student_spans),
        ("teacher", frozen(teacher_logits), teacher_labels, teacher_spans),
    )
    _check(sides, common)
    count = min(student_spans.shape[1], teacher_spans.shape[1])
    first = [_first_places(spans, count) for *_, spans in sides]
    there = (first[0] >= 0) & (first[1] >= 0)
    classes, tails = zip(
        *(
            _distribution(logits, labels, spans, places, there, common[:, side])
            for side, ((_, logits, labels, spans), places) in enumerate(
                zip(sides, first, strict=True)
            )
        ),
        strict=True,
    )
    shared = divergence(classes[1], classes[0]).sum(-1)
    size = max(tail.shape[-1] for tail in tails)
    student, teacher = (
        jnp.pad(tail, ((0, 0), (0, 0), (0, size - tail.shape[-1]))) for tail in tails
    )
    rest = absolute(student - teacher).sum(-1)
    return (
        jnp.where(there, shared, 0),
        jnp.where(there, rest, 0),
        jnp.where(there, first[0], -1),
    )


def _first_places(spans: Array, count: int) -> Integer[Array, "batch spans"]:
    """Return where each span begins in a row, from the first on; −1 for none."""
    batch, length = spans.shape
    places = jnp.broadcast_to(jnp.arange(length), (batch, length))
    number = jnp.where((spans > 0) & (spans <= count), spans, 0)
    rows = jnp.arange(batch)[:, None]
    first = jnp.full((batch, count + 1), length).at[rows, number].min(places)[:, 1:]
    return jnp.where(first < length, first, -1)


def _distribution(
    logits: Array, labels: Array, spans: Array, first: Array, there: Array, common: Any
) -> tuple[Array, Array]:
    """Return the classes' log-probabilities, and the sorted ones of what is not common.

    What stands where no span is may be anything: it is taken out first.
    """
    rows, count = jnp.arange(len(spans))[:, None], first.shape[1]
    known = spans > 0
    of_labels = gather_log_probs(
        jnp.where(known[..., None], logits, 0), jnp.where(known, labels, 0)[..., None]
    )[..., 0]
    number = jnp.where(known & (spans <= count), spans, 0)
    begins = jnp.pad(first, ((0, 0), (1, 0)), constant_values=-1)[rows, number]
    later = known & (begins != jnp.arange(spans.shape[1]))
    after = jnp.zeros((len(spans), count + 1), logits.dtype)
    after = after.at[rows, number].add(jnp.where(later, of_labels, 0))[:, 1:]
    # The first piece alone, and what it keeps of itself: p·(1 − Π of the others).
    logits = jnp.where(there[..., None], logits[rows, first], 0)
    label = jnp.where(there, labels[rows, first], 0)[..., None]
    log_probs = log_softmax(logits)
    piece = jnp.take_along_axis(log_probs, label, axis=-1)
    after = jnp.where(there, after, 0)[..., None]
    kept = piece + jnp.log(-jnp.expm1(jnp.minimum(after, -jnp.exp(FLOOR))))
    log_probs = jnp.put_along_axis(log_probs, label, kept, axis=-1, inplace=False)
    others = np.setdiff1d(np.arange(logits.shape[-1]), common)
    own = log_probs[..., others]
    floor = jnp.full((*own.shape[:-1], 1), FLOOR, own.dtype)
    rest = logsumexp(jnp.concatenate([own, floor], axis=-1))[..., None]
    classes = jnp.concatenate([piece + after, log_probs[..., common], rest], axis=-1)
    return classes, -jnp.sort(-jnp.exp(own), axis=-1)


def _check(sides: Any, common: np.ndarray) -> None:
    if not len(common):
        raise ValueError("common is empty: the tokenizers must have a token in common")
    for side, (name, logits, labels, spans) in enumerate(sides):
        if labels.shape != logits.shape[:2] or spans.shape != logits.shape[:2]:
            raise ValueError(
                f"{name}_labels has shape {labels.shape} and {name}_spans "
                f"{spans.shape}, but {name}_logits has {logits.shape}: give one label "
                "and one span a token"
            )
        if common.min() < 0 or common[:, side].max() >= logits.shape[-1]:
            raise ValueError(
                f"common has the {name}'s token {common[:, side].max()}, but "
                f"{name}_logits are of tokens 0 to {logits.shape[-1] - 1}: give "
                "data.common_tokens of the two networks' own tokenizers"
            )
