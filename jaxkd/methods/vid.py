"""Variational information distillation."""

from collections.abc import Sequence

from flax import nnx

from jaxkd.arguments import checked
from jaxkd.losses.features import vid_loss
from jaxkd.methods.base import from_module, pair_taps
from jaxkd.methods.modules.projectors import VIDRegressor
from jaxkd.types import Method


@checked()
def vid(taps: Sequence[str], teacher_taps: Sequence[str] | None = None) -> Method:
    """Return variational information distillation, summed over stages.

    Ahn et al. 2019, arXiv:1904.05835. The recipe's weight is 1. The variances are
    trained (one public code base leaves them out of its optimizer).

    Args:
        taps: the student's maps (batch, height, width, channels).
        teacher_taps: the teacher's, one for each; None for the same names.
    """
    pairs = pair_taps(taps, teacher_taps)

    def build(student, teacher, rngs):
        return nnx.List(
            VIDRegressor(
                student.features[s].shape[-1], teacher.features[t].shape[-1], rngs=rngs
            )
            for s, t in pairs
        )

    def loss(modules, student, teacher, batch, key):
        return sum(
            vid_loss(
                module(student.features[s]), module.log_scale[...], teacher.features[t]
            )
            for module, (s, t) in zip(modules, pairs, strict=True)
        )

    return from_module(
        build,
        loss,
        name="vid",
        student_taps=tuple(taps),
        teacher_taps=tuple(t for _, t in pairs),
    )
