"""Channel-wise distillation."""

from jaxkd.arguments import checked, positive
from jaxkd.losses.attention import cwd_loss
from jaxkd.methods.base import connectors, example_weights, from_module
from jaxkd.types import Method


@checked(temperature=positive)
def cwd(
    tap: str, teacher_tap: str | None = None, *, temperature: float = 4.0
) -> Method:
    """Return channel-wise distillation through an aligning 1x1 convolution.

    Shu et al. 2021, arXiv:2011.13256. The recipe's weight is 50 on features, T = 4.
    For dense logits, which need no alignment, use ``from_loss`` on
    ``losses.cwd_loss`` with weight 3.

    Args:
        tap: the student's map (batch, height, width, channels).
        teacher_tap: the teacher's, of the same size; None for the same name.
        temperature: T > 0 of the softmax over positions.
    """
    teacher_tap = teacher_tap or tap

    def loss(modules, student, teacher, batch, key):
        mask = example_weights(batch, student)
        aligned = modules[0](student.features[tap], mask=mask)
        return cwd_loss(aligned, teacher.features[teacher_tap], temperature)

    return from_module(
        lambda student, teacher, rngs: connectors(
            student, teacher, [(tap, teacher_tap)], rngs
        ),
        loss,
        name="cwd",
        student_taps=(tap,),
        teacher_taps=(teacher_tap,),
    )
