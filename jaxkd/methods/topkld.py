"""TopKLD, for generators whose sampler draws from their best classes alone."""

from jaxkd.arguments import checked
from jaxkd.losses.topkld import Head, topkld_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked()
def topkld(k: int, tail_weight: float = 1.0, head: Head = "reverse") -> Method:
    """Return reverse KL on the teacher's k best classes and forward KL on the others.

    Ding et al. 2025, arXiv:2501.06218; see `jaxkd.losses.topkld_loss`.

    Args:
        k: as many as the sampler draws from, such as a quarter of the vocabulary.
        tail_weight: of the other classes.
        head: the direction on the k; ``forward`` exchanges the two.

    Raises:
        ValueError: from ``loss``, k above the number of classes.
    """
    return from_loss(
        lambda student, teacher, batch: topkld_loss(
            student.logits, teacher.logits, k, tail_weight, head
        ),
        name="topkld",
    )
