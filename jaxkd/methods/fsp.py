"""The flow of solution procedure."""

from collections.abc import Sequence
from itertools import pairwise

from jaxkd.arguments import checked
from jaxkd.losses.features import fsp_loss
from jaxkd.methods.base import from_loss, pair_taps
from jaxkd.types import Method


@checked()
def fsp(taps: Sequence[str], teacher_taps: Sequence[str] | None = None) -> Method:
    """Return the FSP loss over consecutive stages.

    Yim et al. 2017, CVPR, "A Gift from Knowledge Distillation". It belongs to a first
    stage of training on its own, with weight 50, before cross-entropy alone: give it a
    weight that a schedule takes to 0 (`optax.join_schedules`).

    Args:
        taps: the student's maps, at least two, from shallow to deep.
        teacher_taps: the teacher's, one for each, of as many channels; None for the
            same names.

    Raises:
        ValueError: fewer than two taps.
    """
    pairs = pair_taps(taps, teacher_taps)
    if len(pairs) < 2:
        raise ValueError(f"taps must name at least two stages, got {tuple(taps)}")

    def loss(student, teacher, batch):
        return sum(
            fsp_loss(
                (student.features[s0], student.features[s1]),
                (teacher.features[t0], teacher.features[t1]),
            )
            for (s0, t0), (s1, t1) in pairwise(pairs)
        )

    return from_loss(
        loss,
        name="fsp",
        student_taps=tuple(taps),
        teacher_taps=tuple(t for _, t in pairs),
    )
