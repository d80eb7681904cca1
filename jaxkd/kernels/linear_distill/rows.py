"""What is computed of some tokens' logits: their losses, and the logits' gradients.

Both need sums over the vocabulary first (`Rows`); after that, any part of the
vocabulary can be gone through alone. Where the vocabulary is split over a mesh axis,
the sums are over all of it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxkd.kernels.linear_distill.divergences import Divergence

LEFT_OUT = -1e30
"""The log probability of what the target leaves out: finite, since 0·∞ is NaN."""


@dataclass(frozen=True)
class Objective:
    """What is compared: see `jaxkd.kernels.linear_distill.linear_distill`."""

    divergence: Divergence
    temperature: float
    top_k: int | None
    axis_name: str | None


class Rows(NamedTuple):
    """One value a token: sums over the vocabulary that the gradients need.

    Attributes:
        least: the teacher's k-th largest logit, or None.
        log_p: log normaliser of the target.
        log_q: log normaliser of the student.
        log_hard: the same at temperature 1.
        slope_p: sum of the terms' derivatives by log p.
        slope_q: sum of the terms' derivatives by log q.
    """

    least: Float[Array, "tokens 1"] | None
    log_p: Float[Array, "tokens 1"]
    log_q: Float[Array, "tokens 1"]
    log_hard: Float[Array, "tokens 1"]
    slope_p: Float[Array, "tokens 1"]
    slope_q: Float[Array, "tokens 1"]


def local_labels(
    labels: Int[Array, "tokens"], vocabulary: int, axis_name: str | None
) -> Int[Array, "tokens"]:
    """Return the labels as columns of this device's part of the vocabulary.

    Labels of other parts, and what is no label, are outside of 0 … vocabulary − 1.
    """
    if axis_name is None:
        return labels
    return labels - lax.axis_index(axis_name) * vocabulary


def summarize(
    objective: Objective,
    student: Float[Array, "tokens vocabulary"],
    teacher: Float[Array, "tokens vocabulary"],
    labels: Int[Array, "tokens"] | None,
    interpolation: Array | None,
) -> tuple[Float[Array, "tokens"], Float[Array, "tokens"], Rows]:
    """Return the tokens' divergences, cross-entropies and `Rows`.

    Args:
        objective: what is compared.
        student: logits.
        teacher: logits.
        labels: columns of these logits, of `local_labels`.
        interpolation: the teacher's share of the target's logits.
    """
    axis, temperature = objective.axis_name, objective.temperature
    least = None
    if objective.top_k is not None:
        least = _kth_largest(teacher, objective.top_k, axis)
    tempered = student / temperature
    target = target_logits(objective, student, teacher, least, interpolation)
    log_q = _log_normalizer(tempered, axis)
    log_p = _log_normalizer(target, axis)
    terms, slope_p, slope_q = terms_and_slopes(
        objective, jnp.maximum(target - log_p, LEFT_OUT), tempered - log_q
    )
    divergence = temperature**2 * _sum(terms, axis)[:, 0]
    log_hard = log_q if temperature == 1 else _log_normalizer(student, axis)
    cross_entropy = jnp.zeros_like(divergence)
    if labels is not None:
        cross_entropy = _cross_entropy(student, labels, log_hard, axis)
    rows = Rows(least, log_p, log_q, log_hard, _sum(slope_p, axis), _sum(slope_q, axis))
    return divergence, cross_entropy, rows


def gradients(
    objective: Objective,
    rows: Rows,
    student: Float[Array, "tokens part"],
    teacher: Float[Array, "tokens part"],
    labels: Int[Array, "tokens 1"] | None,
    interpolation: Array | None,
    weights: Float[Array, "tokens 1"],
    label_weights: Float[Array, "tokens 1"],
) -> tuple[Float[Array, "tokens part"], Float[Array, "tokens part"]]:
    """Return the gradients of the weighted sum by the logits of student and teacher.

    Args:
        objective: what is compared.
        rows: of `summarize`.
        student: some columns of the logits.
        teacher: the same columns.
        labels: among these columns where they are not below 0 or past the last.
        interpolation: as in `summarize`.
        weights: of the tokens' divergences.
        label_weights: of their cross-entropies.
    """
    temperature = objective.temperature
    target = target_logits(objective, student, teacher, rows.least, interpolation)
    log_p = jnp.maximum(target - rows.log_p, LEFT_OUT)
    log_q = student / temperature - rows.log_q
    _, slope_p, slope_q = terms_and_slopes(objective, log_p, log_q)
    # The divergence has T², the logits are divided by T.
    scale = temperature * weights
    for_student = scale * (slope_q - jnp.exp(log_q) * rows.slope_q)
    for_teacher = scale * (slope_p - jnp.exp(log_p) * rows.slope_p)
    if interpolation is not None:
        for_teacher = interpolation * for_teacher
    if labels is not None:
        columns = lax.broadcasted_iota(labels.dtype, student.shape, 1)
        excess = jnp.exp(student - rows.log_hard) - (columns == labels)
        for_student += label_weights * excess
    return for_student, for_teacher


def target_logits(
    objective: Objective,
    student: Array,
    teacher: Array,
    least: Array | None,
    interpolation: Array | None,
) -> Array:
    """Return the tempered logits of the target, -inf for what it leaves out."""
    target = teacher
    if interpolation is not None:
        own = lax.stop_gradient(student)
        target = (1 - interpolation) * own + interpolation * teacher
    target = target / objective.temperature
    return target if least is None else jnp.where(teacher >= least, target, -jnp.inf)


def terms_and_slopes(
    objective: Objective, log_p: Array, log_q: Array
) -> tuple[Array, Array, Array]:
    """Return the divergence's terms and their derivatives by log p and log q."""
    terms, derivatives = jax.vjp(objective.divergence, log_p, log_q)
    return terms, *derivatives(jnp.ones_like(terms))


def _cross_entropy(
    student: Array, labels: Array, log_hard: Array, axis: str | None
) -> Array:
    """Return the labels' cross-entropies, NaN for what is no label."""
    found = (labels >= 0) & (labels < student.shape[-1])
    index = jnp.where(found, labels, 0)[:, None]
    picked = jnp.where(found[:, None], jnp.take_along_axis(student, index, 1), 0)
    found = _sum(found[:, None].astype(student.dtype), axis)
    return jnp.where(found > 0, log_hard - _sum(picked, axis), jnp.nan)[:, 0]


def _kth_largest(x: Array, k: int, axis: str | None) -> Array:
    x = lax.stop_gradient(x)
    largest = lax.top_k(x, min(k, x.shape[-1]))[0]
    if axis is not None:
        everyones = lax.all_gather(largest, axis, axis=1, tiled=True)
        largest = lax.top_k(everyones, k)[0]
    return largest[:, -1:]


def _log_normalizer(x: Array, axis: str | None) -> Array:
    largest = lax.stop_gradient(x.max(-1, keepdims=True))
    if axis is not None:
        largest = lax.pmax(largest, axis)
    return largest + jnp.log(_sum(jnp.exp(x - largest), axis))


def _sum(x: Array, axis: str | None) -> Array:
    total = x.sum(-1, keepdims=True)
    return total if axis is None else lax.psum(total, axis)
