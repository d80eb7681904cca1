"""Losses on answers that a teacher compared or ranked.

They take the log-probabilities of whole answers under the student, one number an
answer, such as ``jnp.sum(mask * token_log_probs, -1)``. A ranked list by
Plackett-Luce (PRO, Song et al. 2023, arXiv:2306.17492) is
`jaxkd.losses.ranking.plackett_luce_loss` with equal weights.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive
from jaxkd.losses.basics import as_float, frozen


@checked(beta=positive)
def dpo_loss(
    chosen: Float[Array, "*batch"],
    rejected: Float[Array, "*batch"],
    reference_chosen: Float[Array, "*batch"],
    reference_rejected: Float[Array, "*batch"],
    beta: float = 0.1,
) -> Float[Array, "*batch"]:
    """Direct preference optimisation: −log σ(β·(better answer's gain − the other's)).

    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; an answer's gain is its log-ratio of
    student and reference.

    Args:
        chosen: log-probability of the better answer under the student.
        rejected: of the worse one.
        reference_chosen: under the reference, such as the student before; no gradient.
        reference_rejected: likewise.
        beta: β > 0, how far the student may go from the reference.

    Raises:
        ValueError: β is not above 0.
    """
    gain = as_float(chosen) - frozen(reference_chosen)
    other = as_float(rejected) - frozen(reference_rejected)
    return -jax.nn.log_sigmoid(beta * (gain - other))


@checked()
def rrhf_loss(
    scores: Float[Array, "*batch answers"], rewards: Float[Array, "*batch answers"]
) -> Float[Array, "*batch"]:
    """Rank responses: Σ over pairs with r_i < r_j of max(0, s_i − s_j).

    Yuan et al. 2023 (RRHF), arXiv:2304.05302, Eq. 2. Their other term is the
    cross-entropy of the best answer.

    Args:
        scores: s, log-probabilities over the answers' lengths.
        rewards: r, the teacher's.

    Raises:
        ValueError: shapes differ, or one answer.
    """
    if scores.shape != rewards.shape or scores.shape[-1] < 2:
        raise ValueError(
            f"scores has shape {scores.shape} but rewards {rewards.shape}: give both "
            "of the same answers, two or more"
        )
    scores = as_float(scores)
    worse = rewards[..., :, None] < rewards[..., None, :]
    gap = scores[..., :, None] - scores[..., None, :]
    return jnp.where(worse, jax.nn.relu(gap), 0).sum((-1, -2))
