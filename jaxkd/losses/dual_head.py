"""Losses of two heads on shared features: one learns labels, the other a teacher.

With few labels and many unlabelled examples, labels and a teacher's soft labels pull
one head in opposite directions. Two heads leave each its own signal, and their
probabilities are mixed where the student is used.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxkd.arguments import checked, positive, probability
from jaxkd.losses.basics import (
    as_float,
    check_class_indices,
    check_positive,
    check_same_shape,
    log_softmax,
    logsumexp,
    weighted_loss,
    zero_masked,
)
from jaxkd.losses.divergences import cross_entropy_loss, kd_loss
from jaxkd.types import Loss


@checked()
def dual_head_log_probs(
    ce_logits: Float[Array, "*batch classes"],
    kd_logits: Float[Array, "*batch classes"],
    alpha: float | Float[Array, ""] = 0.5,
    beta: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch classes"]:
    """Log-probabilities of two heads' mixture.

    log(α·softmax(z_ce) + (1 − α)·softmax(z_kd/β)), Kang et al. 2025, arXiv:2505.07675,
    Section 3; both numbers are chosen after training, on validation data.

    Args:
        ce_logits: z_ce, of the head that learns from labels.
        kd_logits: z_kd, of the head that learns from the teacher.
        alpha: α in [0, 1], the share of the head that learns from labels.
        beta: β > 0, a temperature of the other head; below 1 it sharpens.

    Raises:
        ValueError: shapes differ, α is outside [0, 1], or β is not above 0.
    """
    if jnp.shape(ce_logits) != jnp.shape(kd_logits):
        raise ValueError(
            f"ce_logits has shape {jnp.shape(ce_logits)} but kd_logits has shape "
            f"{jnp.shape(kd_logits)}: both heads need the same examples and classes"
        )
    check_share("alpha", alpha)
    check_positive("beta", beta)
    ce = jnp.log(alpha) + log_softmax(as_float(ce_logits))
    kd = jnp.log1p(-alpha) + log_softmax(as_float(kd_logits), beta)
    return logsumexp(jnp.stack([ce, kd]), axis=0)


@checked(temperature=positive, lam=probability)
def dho_loss(
    ce_logits: Float[Array, "batch classes"],
    kd_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    labelled: Bool[Array, "batch"],
    *,
    lam: float = 0.5,
    temperature: float = 2.0,
    weights: Float[Array, "batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Dual-head loss of a batch that holds labelled and unlabelled examples.

    λ·mean_l CE + (1 − λ)·(mean_l KD + mean_u KD), Kang et al. 2025, arXiv:2505.07675,
    Eqs. 2, 3 and 6 (the KL of their Algorithm 1 is printed reversed): cross-entropy is
    the mean over labelled examples; distillation is `kd_loss`, and its means over the
    labelled and over the unlabelled examples are added, not averaged. A group without
    examples adds 0.

    Args:
        ce_logits: of the head that learns from labels.
        kd_logits: of the head that learns from the teacher.
        teacher_logits: the teacher's.
        labels: classes; what stands at unlabelled examples is not read.
        labelled: which examples are.
        lam: λ in [0, 1], the weight of cross-entropy.
        temperature: T > 0 of distillation.
        weights: one an example.

    Returns:
        The loss, and its parts ``ce``, ``kd_labelled`` and ``kd_unlabelled`` without λ.

    Raises:
        ValueError: shapes differ, labels are no class indices, λ is outside [0, 1] or
            T is not above 0.
    """
    check_share("lam", lam)
    terms = dho_terms(
        ce_logits,
        kd_logits,
        teacher_logits,
        labels,
        labelled,
        temperature=temperature,
        weights=weights,
    )
    parts = {name: term.value for name, term in terms.items()}
    distilled = parts["kd_labelled"] + parts["kd_unlabelled"]
    return lam * parts["ce"] + (1 - lam) * distilled, parts


@checked(temperature=positive)
def dho_terms(
    ce_logits: Float[Array, "batch classes"],
    kd_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    labelled: Bool[Array, "batch"],
    *,
    temperature: float = 2.0,
    weights: Float[Array, "batch"] | None = None,
) -> dict[str, Loss]:
    """Return the parts of `dho_loss`, each a sum and what it is divided by.

    Args:
        ce_logits: as of `dho_loss`.
        kd_logits: likewise.
        teacher_logits: likewise.
        labels: likewise.
        labelled: likewise.
        temperature: likewise.
        weights: likewise.

    Raises:
        ValueError: as `dho_loss`.
    """
    check_same_shape(kd_logits, teacher_logits, "logits")
    check_class_indices(labels)
    check_positive("temperature", temperature)
    weights = jnp.ones(len(ce_logits)) if weights is None else as_float(weights)
    among_labelled = jnp.where(labelled, weights, 0)
    among_unlabelled = jnp.where(labelled, 0, weights)
    ce_logits = zero_masked(ce_logits, among_labelled)
    ce = cross_entropy_loss(ce_logits, jnp.where(labelled, labels, 0))
    kd_logits = zero_masked(kd_logits, weights)
    kd = kd_loss(kd_logits, zero_masked(teacher_logits, weights), temperature)
    return {
        "ce": weighted_loss(ce, among_labelled),
        "kd_labelled": weighted_loss(kd, among_labelled),
        "kd_unlabelled": weighted_loss(kd, among_unlabelled),
    }


@checked()
def check_share(name: str, value: Any) -> None:
    """Refuse a number known at trace time that is outside [0, 1].

    Raises:
        ValueError: it names the argument and the value.
    """
    if isinstance(value, Tracer):
        return
    if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
        raise ValueError(f"{name} must be in [0, 1], got {value}")
