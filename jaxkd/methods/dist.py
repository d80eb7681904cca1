"""Distillation from a stronger teacher by correlation."""

from jaxkd.arguments import checked, positive
from jaxkd.losses.correlation import dist_loss
from jaxkd.methods.base import batch_weights, from_loss
from jaxkd.types import Method


@checked(temperature=positive)
def dist(beta: float = 2.0, gamma: float = 2.0, temperature: float = 1.0) -> Method:
    """Return DIST: Pearson correlation within examples and within classes.

    Huang et al. 2022, arXiv:2205.10536. The recipe weighs cross-entropy 1, and takes
    T = 4 on CIFAR, 1 on ImageNet.

    Args:
        beta: weight of the relation between the classes of an example.
        gamma: weight of the relation between the examples of a class.
        temperature: T > 0.
    """
    return from_loss(
        lambda student, teacher, batch: dist_loss(
            student.logits,
            teacher.logits,
            beta,
            gamma,
            temperature,
            weights=batch_weights(batch, student.logits.shape[:-1]),
        ),
        name="dist",
    )
