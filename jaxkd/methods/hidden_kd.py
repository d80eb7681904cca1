"""Hidden states of transformers, token by token."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array

from jaxkd.arguments import checked, count
from jaxkd.losses.basics import as_float, frozen, l2_normalize
from jaxkd.losses.language import relation_loss
from jaxkd.methods.base import (
    from_loss,
    from_module,
    masked_loss,
    pair_taps,
    summed,
)
from jaxkd.methods.masks import documents, tap_batch
from jaxkd.models.parts.linear import Linear
from jaxkd.types import Batch, Loss, Method


@checked()
def hidden_kd(
    taps: Sequence[str],
    teacher_taps: Sequence[str] | None = None,
    *,
    cosine: bool = False,
) -> Method:
    """Return the distance of hidden states through trained linear maps.

    Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, Eq. 8, for any layers: hidden states
    (``block3``), what attention adds (``block3.attn``), embeddings. One map a pair,
    thrown away after training.

    Args:
        taps: the student's features (batch, length, width).
        teacher_taps: the teacher's; None for the same names.
        cosine: 1 − cos, as DistilBERT has it (Sanh et al. 2019, arXiv:1910.01108), in
            place of the mean squared difference.

    Raises:
        ValueError: unequal numbers of taps.
    """
    pairs = pair_taps(taps, teacher_taps)

    def build(student, teacher, rngs):
        return nnx.List(
            Linear(
                student.features[s].shape[-1],
                teacher.features[t].shape[-1],
                use_bias=False,
                rngs=rngs,
            )
            for s, t in pairs
        )

    def distance(x, y):
        x, y = as_float(x), frozen(y)
        if cosine:
            return 1 - (l2_normalize(x) * l2_normalize(y)).sum(-1)
        return ((x - y) ** 2).mean(-1)

    def loss(module, student, teacher, batch, key):
        found = [
            distance(project(student.features[s]), teacher.features[t])
            for project, (s, t) in zip(module, pairs, strict=True)
        ]
        return _of_tokens(found, pairs, batch)

    return from_module(
        build,
        loss,
        name="hidden_kd",
        student_taps=tuple(s for s, _ in pairs),
        teacher_taps=tuple(t for _, t in pairs),
    )


@checked(heads=count)
def relation_kd(
    taps: Sequence[str], teacher_taps: Sequence[str] | None = None, *, heads: int
) -> Method:
    """Return the KL of how tokens relate to one another, which needs no trained map.

    Wang et al. 2020 (MiniLMv2), arXiv:2012.15828, on any tapped features. The documents
    of a packed row have nothing to do with one another.

    Args:
        taps: the student's features (batch, length, width).
        teacher_taps: the teacher's; None for the same names.
        heads: of relations, a divisor of both widths.

    Raises:
        ValueError: unequal numbers of taps; from ``loss``, heads that do not divide.
    """
    pairs = pair_taps(taps, teacher_taps)

    def loss(student, teacher, batch):
        found = []
        for s, t in pairs:
            x, y = student.features[s], teacher.features[t]
            segments = documents(tap_batch(batch, s), x.shape)
            found.append(relation_loss(x, y, heads, segments=segments))
        return _of_tokens(found, pairs, batch)

    return from_loss(
        loss,
        name="relation_kd",
        student_taps=tuple(s for s, _ in pairs),
        teacher_taps=tuple(t for _, t in pairs),
    )


def _of_tokens(
    values: Sequence[Array], pairs: Sequence[tuple[str, str]], batch: Batch
) -> Loss:
    """Return the sum over taps of the losses of their tokens, (batch, length)."""
    return summed(
        *(
            (1.0, masked_loss(x, tap_batch(batch, tap)))
            for x, (tap, _) in zip(values, pairs, strict=True)
        )
    )
