"""Divergences of a teacher's and a student's distribution, entry by entry.

Each is a function ``(log_p, log_q) → terms`` of the teacher's and the student's log
probabilities, and its terms sum to the divergence over the vocabulary. It is all that
tells one divergence from another: write your own in the same way, elementwise, finite
where ``log_p`` is as low as -1e30 (an entry that the target leaves out) or either is -∞
(a class that no one may choose; see `times`).

In the terms below a distribution less another adds nothing to the sum, and makes each
term at least 0, so that float32 keeps its digits where the two are close.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Divergence = Callable[[Array, Array], Array]
Terms = Float[Array, "..."]


def times(p: Terms, x: Terms) -> Terms:
    """Return p·x, and 0 where p is 0 and x no finite number.

    A class at -∞ in both networks has p = 0 and x = log p − log q, which is NaN there:
    it adds nothing to a sum over classes, as if it did not exist, nor to the gradient.

    Args:
        p: probabilities.
        x: logarithms of such, or differences of two.
    """
    return p * jnp.where((p == 0) & ~jnp.isfinite(x), 0, x)


def forward_kl(log_p: Terms, log_q: Terms) -> Terms:
    """Return the terms of KL(p ‖ q): Hinton et al. 2015, arXiv:1503.02531."""
    p = jnp.exp(log_p)
    return times(p, log_p - log_q) + (jnp.exp(log_q) - p)


def soft_cross_entropy(log_p: Terms, log_q: Terms) -> Terms:
    """Return the terms of −Σ p·log q: KL(p ‖ q) and the teacher's entropy."""
    return -times(jnp.exp(log_p), log_q)


def reverse_kl(log_p: Terms, log_q: Terms) -> Terms:
    """Return the terms of KL(q ‖ p): Gu et al. 2023, arXiv:2306.08543."""
    return forward_kl(log_q, log_p)


def total_variation(log_p: Terms, log_q: Terms) -> Terms:
    """Return the terms of ½·Σ|p − q|: Wen et al. 2023, arXiv:2307.15190."""
    gap = jnp.exp(log_p) - jnp.exp(log_q)
    # Not |gap|, whose slope at 0 is 1 in JAX: where both agree, neither is pulled.
    return 0.5 * gap * jnp.sign(gap)


def jensen_shannon(beta: float = 0.5) -> Divergence:
    """Return β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) with m = β·p + (1 − β)·q.

    Agarwal et al. 2023 (GKD), arXiv:2306.13649, Eq. 1.

    Args:
        beta: β in (0, 1).

    Raises:
        ValueError: β is outside (0, 1).
    """
    _check_share("beta", beta, "forward_kl or reverse_kl")

    def divergence(log_p: Terms, log_q: Terms) -> Terms:
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        mixed = beta * p + (1 - beta) * q
        return beta * _kl(p, log_p, mixed) + (1 - beta) * _kl(q, log_q, mixed)

    return divergence


def skew_kl(alpha: float = 0.1) -> Divergence:
    """Return KL(p ‖ α·p + (1 − α)·q).

    Ko et al. 2024 (DistiLLM), arXiv:2402.03898, Section 3.1.

    Args:
        alpha: α in (0, 1).

    Raises:
        ValueError: α is outside (0, 1).
    """
    _check_share("alpha", alpha, "forward_kl")

    def divergence(log_p: Terms, log_q: Terms) -> Terms:
        p = jnp.exp(log_p)
        return _kl(p, log_p, alpha * p + (1 - alpha) * jnp.exp(log_q))

    return divergence


def skew_reverse_kl(alpha: float = 0.1) -> Divergence:
    """Return KL(q ‖ α·q + (1 − α)·p).

    Ko et al. 2024 (DistiLLM), arXiv:2402.03898, Section 3.1.

    Args:
        alpha: α in (0, 1).

    Raises:
        ValueError: α is outside (0, 1).
    """
    skewed = skew_kl(alpha)
    return lambda log_p, log_q: skewed(log_q, log_p)


def _kl(p: Array, log_p: Array, mixed: Array) -> Array:
    # Where the mixture underflows so does p, and the term is 0 whatever the logarithm.
    log_mixed = jnp.log(jnp.maximum(mixed, jnp.finfo(mixed.dtype).tiny))
    return times(p, log_p - log_mixed) + (mixed - p)


def _check_share(name: str, share: float, instead: str) -> None:
    if not 0 < share < 1:
        raise ValueError(
            f"{name} must be in (0, 1), got {share}: use {instead} at the ends"
        )
