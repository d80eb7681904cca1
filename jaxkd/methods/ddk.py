"""Distilling domain knowledge: more of the domains in which the student lags."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive, probability
from jaxkd.kernels.linear_distill import Divergence, forward_kl
from jaxkd.losses.basics import as_float, check_positive
from jaxkd.methods.base import combine
from jaxkd.methods.cross_entropy import cross_entropy
from jaxkd.methods.divergence_kd import divergence_kd
from jaxkd.methods.linear_kd import linear_kd
from jaxkd.types import Method

Evaluation = Mapping[str, int | float]

PERPLEXITY = "perplexity/"
"""What `domain_evaluator` puts before a domain's name in its metrics."""


@checked(temperature=positive)
def ddk(
    gamma: float = 0.2,
    temperature: float = 1.0,
    *,
    divergence: Divergence = forward_kl,
    from_heads: bool = False,
) -> Method:
    """Return cross-entropy and γ·T²·KL, the loss of DDK.

    Liu et al. 2024, arXiv:2407.16154, Eq. 3. The domains' part is in the sampling: see
    `ddk_weights`. The equation has the student first in the KL, while its text wants
    the student to approximate the teacher as word-level distillation does: KL(teacher ‖
    student) here, the other as `jaxkd.kernels.linear_distill.reverse_kl`.

    Args:
        gamma: γ at least 0, of the divergence.
        temperature: T > 0, of both; the paper has 1 and so no T².
        divergence: one of `jaxkd.kernels.linear_distill`.
        from_heads: from hidden states and heads, without logits in memory, as
            `linear_kd`; the same numbers.

    Raises:
        ValueError: γ below 0, or T not above 0.
    """
    if from_heads and gamma:
        fused = linear_kd(divergence, temperature=temperature, label_weight=1 / gamma)
        return combine((gamma, fused))
    return combine(
        (1.0, cross_entropy()), (gamma, divergence_kd(divergence, temperature))
    )


@checked()
def discrepancy_init(
    student: Float[Array, "domains"], teacher: Float[Array, "domains"]
) -> Float[Array, "domains"]:
    """Return the first domain discrepancy factor, the softmax of perplexity ratios.

    Liu et al. 2024, arXiv:2407.16154, Eq. 1.

    Args:
        student: perplexity of the student on each domain's validation text.
        teacher: the teacher's.

    Raises:
        ValueError: a perplexity that is not above 0, or numbers that differ.
    """
    return jax.nn.softmax(_ratio(student, teacher))


@checked(alpha=probability)
def discrepancy_update(
    factor: Float[Array, "domains"],
    student: Float[Array, "domains"],
    teacher: Float[Array, "domains"],
    alpha: float = 0.5,
) -> Float[Array, "domains"]:
    """Return the next factor, r' = α·softmax(log r + ratio) + (1 − α)/N.

    Liu et al. 2024, arXiv:2407.16154, Eq. 2, in logarithms, in which a ratio of
    hundreds overflows nothing. Every entry is from (1 − α)/N to α + (1 − α)/N.

    Args:
        factor: r, a distribution.
        student: perplexity of the student on each domain's validation text.
        teacher: the teacher's.
        alpha: α in [0, 1]; 1 without the floor, 0 for all domains alike.

    Raises:
        ValueError: r is no distribution, α is outside [0, 1], or perplexities as in
            `discrepancy_init`.
    """
    factor = as_float(factor)
    if not isinstance(factor, Tracer) and (
        factor.min() < 0 or abs(factor.sum() - 1) > 1e-4
    ):
        raise ValueError(f"factor must be a distribution, got {factor}")
    ratio = _ratio(student, teacher)
    if factor.shape != ratio.shape:
        raise ValueError(
            f"factor is of {len(factor)} domains, the perplexities of {len(ratio)}"
        )
    fresh = jax.nn.softmax(jnp.log(factor) + ratio)
    return alpha * fresh + (1 - alpha) / len(fresh)


@checked()
def ddk_weights(
    start: Evaluation,
    teacher: Evaluation,
    history: Sequence[Evaluation],
    *,
    alpha: float = 0.5,
    smooth: bool = True,
) -> Float[np.ndarray, "domains"] | None:
    """Return the weights of the domains in the next interval of a training run.

    It is what `jaxkd.training.fit_intervals` asks for after each interval. Everything
    follows from the evaluations, which are in the checkpoints.

    Args:
        start: perplexities of the student before training, from
            `jaxkd.evaluation.language.domain_evaluator`.
        teacher: likewise of the teacher, which are computed once.
        history: likewise of the student, after each interval.
        alpha: as of `discrepancy_update`.
        smooth: whether the factor follows the one before it (Eq. 2); without, it is
            that of Eq. 1 each time, the paper's ablation.

    Returns:
        None in the first interval, which the paper draws from all domains by size.
    """
    names = [name for name in teacher if name.startswith(PERPLEXITY)]

    def perplexities(metrics: Evaluation) -> Array:
        return jnp.array([metrics[name] for name in names], float)

    if not history:
        return None
    taught = perplexities(teacher)
    if not smooth:
        return np.asarray(discrepancy_init(perplexities(history[-1]), taught))
    factor = discrepancy_init(perplexities(start), taught)
    for metrics in history:
        factor = discrepancy_update(factor, perplexities(metrics), taught, alpha)
    return np.asarray(factor)


def _ratio(student: Array, teacher: Array) -> Array:
    student, teacher = as_float(student), as_float(teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student has perplexities of {len(student)} domains, teacher of "
            f"{len(teacher)}"
        )
    check_positive("student", student)
    check_positive("teacher", teacher)
    return student / teacher
