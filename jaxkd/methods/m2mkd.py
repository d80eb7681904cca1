"""Module-to-module distillation: pairs of modules, each in one frozen meta model."""

from collections.abc import Sequence
from typing import Literal

from jaxkd.arguments import checked, positive, probability
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.losses.modules import m2m_kd_loss
from jaxkd.methods.base import from_loss, masked_loss, summed
from jaxkd.types import Method


@checked(alpha=probability, temperature=positive, label_smoothing=probability)
def m2mkd(
    stages: Sequence[int],
    alpha: float = 0.5,
    temperature: float = 1.0,
    *,
    kind: Literal["soft", "hard"] = "soft",
    reduction: Literal["numel", "batchmean"] = "numel",
    label_smoothing: float = 0.0,
) -> Method:
    """Return the losses of some stages' modules, summed: each module learns from its.

    Lo et al. 2024, arXiv:2402.16918. Student and teacher are
    `jaxkd.papers.m2mkd.hybrids` of the same meta model. No parameter is in two of the
    losses, so that all pairs train as if alone, in one program (clip gradients module
    by module, if at all). With α = 0 there need be no teacher, and it is the
    incubation of modules (Ni et al. 2022, arXiv:2212.04129).

    Args:
        stages: whose modules are trained.
        alpha: as in `losses.m2m_kd_loss`, like those below.
        temperature: T > 0.
        kind: of distillation.
        reduction: of the KL.
        label_smoothing: of the labels.

    Raises:
        ValueError: no stages.
    """
    if not stages:
        raise ValueError("stages is empty: say whose modules are trained, such as [0]")
    taps = tuple(f"{stage}.logits" for stage in stages)

    def of_pair(student, teacher, batch, tap: str):
        own = student.features[tap]
        if not alpha:
            return cross_entropy_loss(own, batch["label"], label_smoothing)
        return m2m_kd_loss(
            own,
            teacher.features[tap],
            batch["label"],
            alpha,
            temperature,
            kind,
            reduction,
            label_smoothing,
        )

    def loss(student, teacher, batch):
        losses = (of_pair(student, teacher, batch, tap) for tap in taps)
        return summed(*((1.0, masked_loss(values, batch)) for values in losses))

    return from_loss(
        loss, name="m2mkd", student_taps=taps, teacher_taps=taps if alpha else ()
    )
