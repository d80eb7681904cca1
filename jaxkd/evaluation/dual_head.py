"""How much of each head of a dual-head student to use: found on validation data."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked
from jaxkd.evaluation.classification import accuracy
from jaxkd.losses.dual_head import check_share, dual_head_log_probs

ALPHAS = tuple(i / 20 for i in range(21))
"""The authors' shares of the head that learns from labels."""

BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)
"""The authors' temperatures of the other head."""


class Mixture(NamedTuple):
    """The best mixture of two heads.

    Attributes:
        accuracy: on the data that it was found on.
        alpha: α, the share of the head that learns from labels.
        beta: β, the temperature of the other.
    """

    accuracy: Float[Array, ""]
    alpha: Float[Array, ""]
    beta: Float[Array, ""]


@checked()
def search_mixture(
    ce_logits: Float[Array, "examples classes"],
    kd_logits: Float[Array, "examples classes"],
    labels: Int[Array, "examples"],
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> Mixture:
    """Return the mixture of `losses.dual_head_log_probs` that is right most often.

    Kang et al. 2025, arXiv:2505.07675, search this grid after every epoch on
    validation data, and keep the best epoch's weights, α and β together. Of equal
    mixtures the first counts, α running fastest. Not for test data: what it returns is
    fitted to the labels.

    Args:
        ce_logits: of the head that learns from labels.
        kd_logits: of the head that learns from the teacher.
        labels: class indices.
        alphas: α to try, each in [0, 1].
        betas: β to try, each above 0.

    Raises:
        ValueError: nothing to try, an α outside [0, 1], or a β not above 0.
    """
    if not len(alphas) or not len(betas):
        raise ValueError(
            f"alphas has {len(alphas)} values and betas {len(betas)}: give at least "
            "one of each to try"
        )
    check_share("alphas", np.asarray(alphas))
    if min(betas) <= 0:
        raise ValueError(f"betas must be above 0, got {min(betas)} in {betas!r:.80}")
    alpha, beta = jnp.asarray([(a, b) for b in betas for a in alphas], float).T

    def right(pair: tuple[Array, Array]) -> Array:
        return accuracy(dual_head_log_probs(ce_logits, kd_logits, *pair), labels)

    found = jax.lax.map(right, (alpha, beta))
    best = found.argmax()
    return Mixture(found[best], alpha[best], beta[best])
