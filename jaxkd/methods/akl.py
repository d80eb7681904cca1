"""Adaptive Kullback-Leibler distillation."""

from jaxkd.arguments import checked, probability
from jaxkd.losses.language import adaptive_kl_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(share=probability)
def akl(share: float = 0.5) -> Method:
    """Return forward and reverse KL, weighted by where the student errs.

    Wu et al. 2024, arXiv:2404.02657.

    Args:
        share: μ in (0, 1), of the probability that is the teacher's head.
    """
    return from_loss(
        lambda student, teacher, batch: adaptive_kl_loss(
            student.logits, teacher.logits, share
        ),
        name="akl",
    )
