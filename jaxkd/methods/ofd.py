"""The overhaul of feature distillation."""

from collections.abc import Sequence

from jaxtyping import Array

from jaxkd.arguments import checked
from jaxkd.losses.features import ofd_loss, ofd_margin
from jaxkd.methods.base import connectors, example_weights, from_module, pair_taps
from jaxkd.types import Method


@checked()
def ofd(
    taps: Sequence[str],
    norms: Sequence[tuple[Array, Array]],
    teacher_taps: Sequence[str] | None = None,
) -> Method:
    """Return OFD's partial distance with margin ReLU, from shallow to deep stages.

    Heo et al. 2019, arXiv:1904.01866. Stage i of L counts 2^{i−L+1}; the recipe's
    weight is 0.001. The teacher stays in evaluation mode, as the paper describes it;
    one public code base leaves its BatchNorm in training mode.

    Args:
        taps: the student's maps before the ReLU (batch, height, width, channels).
        norms: (scale γ, bias β) of the BatchNorm that makes each teacher map, from the
            teacher's variables; they fix the margins.
        teacher_taps: the teacher's maps before the ReLU, one for each, of the same
            size; None for the same names.

    Raises:
        ValueError: not as many norms as taps.
    """
    pairs = pair_taps(taps, teacher_taps)
    if len(norms) != len(pairs):
        raise ValueError(f"norms has {len(norms)} entries for {len(pairs)} taps")
    margins = [ofd_margin(scale, bias) for scale, bias in norms]

    def loss(modules, student, teacher, batch, key):
        mask = example_weights(batch, student)
        return sum(
            2.0 ** (i - len(pairs) + 1)
            * ofd_loss(
                modules[i](student.features[s], mask=mask),
                teacher.features[t],
                margins[i],
            )
            for i, (s, t) in enumerate(pairs)
        )

    return from_module(
        lambda student, teacher, rngs: connectors(student, teacher, pairs, rngs),
        loss,
        name="ofd",
        student_taps=tuple(taps),
        teacher_taps=tuple(t for _, t in pairs),
    )
