"""Decoupled knowledge distillation."""

from jaxkd.arguments import checked, positive
from jaxkd.losses.divergences import dkd_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(temperature=positive)
def dkd(temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0) -> Method:
    """Return decoupled distillation of target and non-target classes.

    Zhao et al. 2022, arXiv:2203.08679. The recipe weighs cross-entropy 1 and warms this
    up over 20 epochs (`epoch_warmup`).

    Args:
        temperature: T > 0.
        alpha: weight of the target-class part.
        beta: weight of the non-target part; 2, 6 or 8 by pair in the paper.
    """
    return from_loss(
        lambda student, teacher, batch: dkd_loss(
            student.logits, teacher.logits, batch["label"], temperature, alpha, beta
        ),
        name="dkd",
    )
