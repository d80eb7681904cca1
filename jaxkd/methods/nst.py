"""Neuron selectivity transfer."""

from collections.abc import Sequence

from jaxkd.arguments import checked
from jaxkd.losses.attention import nst_loss
from jaxkd.methods.base import from_loss, pair_taps
from jaxkd.types import Method


@checked()
def nst(taps: Sequence[str], teacher_taps: Sequence[str] | None = None) -> Method:
    """Return neuron selectivity transfer (squared kernel), summed over stages.

    Huang and Wang 2017, arXiv:1707.01219. The recipe's weight is 50.

    Args:
        taps: the student's maps (batch, height, width, channels).
        teacher_taps: the teacher's, one for each; None for the same names.
    """
    pairs = pair_taps(taps, teacher_taps)
    return from_loss(
        lambda student, teacher, batch: sum(
            nst_loss(student.features[s], teacher.features[t]) for s, t in pairs
        ),
        name="nst",
        student_taps=tuple(taps),
        teacher_taps=tuple(t for _, t in pairs),
    )
