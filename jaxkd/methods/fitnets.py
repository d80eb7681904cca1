"""FitNets: hints from a middle layer."""

from jaxkd.arguments import checked
from jaxkd.losses.features import hint_loss
from jaxkd.methods.base import example_weights, from_module
from jaxkd.methods.modules.projectors import ConvRegressor, Embed
from jaxkd.types import Method


@checked()
def fitnets(tap: str, teacher_tap: str | None = None) -> Method:
    """Return the hint loss through a trained regressor.

    Romero et al. 2015, arXiv:1412.6550, trained together with the task (the paper
    trains the hint first). The recipe's weight is 100. Convolutional maps go through
    a convolution, BatchNorm and ReLU; vectors through a linear layer.

    Args:
        tap: the student's features, (batch, height, width, channels) or (batch, dim).
        teacher_tap: the teacher's; None for the same name.
    """
    teacher_tap = teacher_tap or tap

    def build(student, teacher, rngs):
        shapes = student.features[tap].shape, teacher.features[teacher_tap].shape
        if len(shapes[0]) == len(shapes[1]) == 2:
            return Embed(shapes[0][1], shapes[1][1], rngs=rngs)
        return ConvRegressor(*shapes, rngs=rngs)

    def loss(module, student, teacher, batch, key):
        target = teacher.features[teacher_tap]
        if target.ndim == 2:
            return hint_loss(module(student.features[tap]), target)
        mask = example_weights(batch, student)
        return hint_loss(module(student.features[tap], mask=mask), target)

    return from_module(
        build, loss, name="fitnets", student_taps=(tap,), teacher_taps=(teacher_tap,)
    )
