"""Relational knowledge distillation."""

from jaxkd.arguments import checked
from jaxkd.losses.relations import rkd_loss
from jaxkd.methods.base import example_weights, from_loss
from jaxkd.types import Method


@checked()
def rkd(
    tap: str,
    teacher_tap: str | None = None,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Method:
    """Return relational distillation: distances and angles between examples.

    Park et al. 2019, arXiv:1904.05068. The recipe weighs cross-entropy 1 and this 1.

    Args:
        tap: the student's pooled features (batch, dim).
        teacher_tap: the teacher's; None for the same name. Their size may differ.
        distance_weight: weight of the distances.
        angle_weight: weight of the angles.
    """
    teacher_tap = teacher_tap or tap
    return from_loss(
        lambda student, teacher, batch: rkd_loss(
            student.features[tap],
            teacher.features[teacher_tap],
            distance_weight,
            angle_weight,
            weights=example_weights(batch, student),
        ),
        name="rkd",
        student_taps=(tap,),
        teacher_taps=(teacher_tap,),
    )
