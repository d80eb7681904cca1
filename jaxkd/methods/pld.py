"""Plackett-Luce distillation: the teacher's ranking of the classes, label first."""

from jaxkd.arguments import checked, positive
from jaxkd.losses.ranking import pld_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(temperature=positive)
def pld(temperature: float = 1.0) -> Method:
    """Return list-wise distillation, which needs no cross-entropy beside it.

    Bassam, Zhu, Bian 2025, arXiv:2506.12542; its weight is 1.

    Args:
        temperature: of the teacher's weights; 1 on ImageNet, 4 on CIFAR-100.
    """
    return from_loss(
        lambda student, teacher, batch: pld_loss(
            student.logits, teacher.logits, batch["label"], temperature
        ),
        name="pld",
    )
