"""Probabilistic knowledge transfer."""

from jaxkd.arguments import checked
from jaxkd.losses.relations import pkt_loss
from jaxkd.methods.base import example_weights, from_loss
from jaxkd.types import Method


@checked()
def pkt(tap: str, teacher_tap: str | None = None) -> Method:
    """Return probabilistic knowledge transfer between similarity distributions.

    Passalis and Tefas 2018, arXiv:1803.10837. The recipe's weight is 30000.

    Args:
        tap: the student's pooled features (batch, dim).
        teacher_tap: the teacher's; None for the same name. Their size may differ.
    """
    teacher_tap = teacher_tap or tap
    return from_loss(
        lambda student, teacher, batch: pkt_loss(
            student.features[tap],
            teacher.features[teacher_tap],
            weights=example_weights(batch, student),
        ),
        name="pkt",
        student_taps=(tap,),
        teacher_taps=(teacher_tap,),
    )
