"""Supervised training on the labels, the part that every recipe shares."""

from jaxkd.arguments import checked, probability
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(label_smoothing=probability)
def cross_entropy(label_smoothing: float = 0.0) -> Method:
    """Return the cross-entropy with ``batch["label"]``; it needs no teacher.

    Labels are class indices, or probabilities (batch, classes) of mixed examples.

    Args:
        label_smoothing: ε of Szegedy et al. 2016, arXiv:1512.00567, in [0, 1).
    """
    return from_loss(
        lambda student, teacher, batch: cross_entropy_loss(
            student.logits, batch["label"], label_smoothing
        ),
        name="cross_entropy",
    )
