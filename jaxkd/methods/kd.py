"""Hinton's knowledge distillation."""

from jaxkd.arguments import checked, positive
from jaxkd.losses.divergences import kd_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(temperature=positive)
def kd(temperature: float = 4.0) -> Method:
    """Return Hinton's distillation, T²·KL(teacher ‖ student) at temperature T.

    Hinton et al. 2015, arXiv:1503.02531. CIFAR recipes take T = 4 with weights 0.1 for
    the cross-entropy and 0.9 for this; ImageNet ones T = 1 with 0.5 and 0.5.

    Args:
        temperature: T > 0.
    """
    return from_loss(
        lambda student, teacher, batch: kd_loss(
            student.logits, teacher.logits, temperature
        ),
        name="kd",
    )
