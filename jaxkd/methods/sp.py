"""Similarity-preserving distillation."""

from jaxkd.arguments import checked
from jaxkd.losses.relations import sp_loss
from jaxkd.methods.base import example_weights, from_loss
from jaxkd.types import Method


@checked()
def sp(tap: str, teacher_tap: str | None = None) -> Method:
    """Return similarity-preserving distillation of the batch's Gram matrix.

    Tung and Mori 2019, arXiv:1907.09682. The recipe's weight is 3000.

    Args:
        tap: the student's last convolutional map, or any features.
        teacher_tap: the teacher's; None for the same name. Their shape may differ.
    """
    teacher_tap = teacher_tap or tap
    return from_loss(
        lambda student, teacher, batch: sp_loss(
            student.features[tap],
            teacher.features[teacher_tap],
            weights=example_weights(batch, student),
        ),
        name="sp",
        student_taps=(tap,),
        teacher_taps=(teacher_tap,),
    )
