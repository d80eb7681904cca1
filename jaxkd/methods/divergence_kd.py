"""Word-level distillation with any divergence, from logits."""

from jaxkd.arguments import checked, positive
from jaxkd.kernels.linear_distill import Divergence, forward_kl
from jaxkd.losses.language import divergence_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(temperature=positive)
def divergence_kd(
    divergence: Divergence = forward_kl, temperature: float = 1.0
) -> Method:
    """Return T²·D(teacher, student) of every token or example.

    For language models of the usual vocabularies take `linear_kd`, which computes the
    same without logits in memory.

    Args:
        divergence: D, one of `jaxkd.kernels.linear_distill`.
        temperature: T > 0.
    """
    return from_loss(
        lambda student, teacher, batch: divergence_loss(
            student.logits, teacher.logits, divergence, temperature
        ),
        name="divergence_kd",
    )
