"""Attention transfer."""

from collections.abc import Sequence

from jaxkd.arguments import checked
from jaxkd.losses.attention import at_loss
from jaxkd.methods.base import from_loss, pair_taps
from jaxkd.types import Method


@checked()
def at(taps: Sequence[str], teacher_taps: Sequence[str] | None = None) -> Method:
    """Return attention transfer, summed over stages.

    Zagoruyko and Komodakis 2017, arXiv:1612.03928. The recipe's weight is 1000, on
    every stage's map.

    Args:
        taps: the student's maps (batch, height, width, channels).
        teacher_taps: the teacher's, one for each; None for the same names.
    """
    pairs = pair_taps(taps, teacher_taps)
    return from_loss(
        lambda student, teacher, batch: sum(
            at_loss(student.features[s], teacher.features[t]) for s, t in pairs
        ),
        name="at",
        student_taps=tuple(taps),
        teacher_taps=tuple(t for _, t in pairs),
    )
