"""Activation boundaries."""

from collections.abc import Sequence

from jaxkd.arguments import checked
from jaxkd.losses.features import ab_loss
from jaxkd.methods.base import connectors, example_weights, from_module, pair_taps
from jaxkd.types import Method


@checked()
def ab(
    taps: Sequence[str],
    teacher_taps: Sequence[str] | None = None,
    *,
    margin: float = 1.0,
) -> Method:
    """Return the transfer of activation boundaries, from shallow to deep stages.

    Heo et al. 2019, arXiv:1811.03233. Stage i of L counts 2^{i−L+1}, and the whole is
    scaled by 3/1000. It belongs to a first stage of training on its own, before
    cross-entropy alone: give it a weight that a schedule takes to 0.

    Args:
        taps: the student's maps before the ReLU (batch, height, width, channels).
        teacher_taps: the teacher's, one for each, of the same size; None for the same
            names.
        margin: the student's pre-activations are pushed this far past 0.
    """
    pairs = pair_taps(taps, teacher_taps)

    def loss(modules, student, teacher, batch, key):
        mask = example_weights(batch, student)
        total = sum(
            2.0 ** (i - len(pairs) + 1)
            * ab_loss(
                modules[i](student.features[s], mask=mask), teacher.features[t], margin
            )
            for i, (s, t) in enumerate(pairs)
        )
        return total * 3e-3

    return from_module(
        lambda student, teacher, rngs: connectors(student, teacher, pairs, rngs),
        loss,
        name="ab",
        student_taps=tuple(taps),
        teacher_taps=tuple(t for _, t in pairs),
    )
