"""The loss of one pair of modules in hybrid networks (m2mKD)."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, positive, probability
from jaxkd.losses.basics import check_same_shape, frozen
from jaxkd.losses.divergences import cross_entropy_loss, kd_loss


@checked(alpha=probability, temperature=positive, label_smoothing=probability)
def m2m_kd_loss(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"] | Float[Array, "batch classes"],
    alpha: float = 0.5,
    temperature: float = 1.0,
    kind: Literal["soft", "hard"] = "soft",
    reduction: Literal["numel", "batchmean"] = "numel",
    label_smoothing: float = 0.0,
) -> Float[Array, "batch"]:
    """Return (1 − α)·cross-entropy + α·distillation of two hybrids' logits.

    Lo et al. 2024, arXiv:2402.16918: soft distillation is T²·KL, hard the cross-entropy
    with the teacher's class.

    Args:
        student_logits: of the student's module in the meta model.
        teacher_logits: of the teacher's module in the same model.
        labels: class indices, or probabilities as Mixup makes them.
        alpha: the distillation's share.
        temperature: T > 0.
        kind: of distillation.
        reduction: ``"numel"`` divides KL by the number of classes, as the authors' code
            does: of 1,000 classes little more than the cross-entropy is left.
            ``"batchmean"`` does not.
        label_smoothing: of the labels.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, or numbers out of range.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    own = cross_entropy_loss(student_logits, labels, label_smoothing)
    if kind == "hard":
        best = jnp.argmax(frozen(teacher_logits), axis=-1)
        taught = cross_entropy_loss(student_logits, best)
    else:
        taught = kd_loss(student_logits, teacher_logits, temperature)
        if reduction == "numel":
            taught = taught / student_logits.shape[-1]
    return (1 - alpha) * own + alpha * taught
