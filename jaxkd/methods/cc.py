"""Correlation congruence, as its reference code computes it."""

from jaxkd.arguments import checked, count
from jaxkd.losses.basics import frozen
from jaxkd.losses.relations import cc_loss
from jaxkd.methods.base import example_weights, from_module
from jaxkd.methods.modules.projectors import EmbedPair
from jaxkd.types import Method


@checked(dim=count)
def cc(tap: str, teacher_tap: str | None = None, *, dim: int = 128) -> Method:
    """Return correlation congruence between neighbouring examples' embeddings.

    Peng et al. 2019, arXiv:1904.01802. The recipe's weight is 0.02. Both embeddings
    are trained.

    Args:
        tap: the student's pooled features.
        teacher_tap: the teacher's; None for the same name.
        dim: of the embeddings.
    """
    teacher_tap = teacher_tap or tap

    def build(student, teacher, rngs):
        return EmbedPair(
            student.features[tap].shape, teacher.features[teacher_tap].shape, dim, rngs
        )

    def loss(module, student, teacher, batch, key):
        embeddings = module(
            student.features[tap], frozen(teacher.features[teacher_tap])
        )
        return cc_loss(*embeddings, weights=example_weights(batch, student))

    return from_module(
        build, loss, name="cc", student_taps=(tap,), teacher_taps=(teacher_tap,)
    )
