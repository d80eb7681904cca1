"""Which weights N:M sparsity keeps, and how dropped ones are trained all the same."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.arguments import checked, integer


@checked(axis=integer)
def nm_mask(
    weights: Float[Array, "*shape"],
    n: int = 2,
    m: int = 4,
    axis: int = 0,
    score: Float[Array, "*shape"] | None = None,
) -> Bool[Array, "*shape"]:
    """Return which weights N:M sparsity keeps: the n largest of every m.

    Exactly n are kept; of equal ones the first.

    Args:
        weights: with Flax's layout (inputs, outputs), so that m consecutive inputs of
            one output are a group.
        n: kept of a group.
        m: entries of a group, consecutive along the axis.
        axis: of the groups.
        score: what is compared instead of magnitudes, such as magnitude times the
            input's norm (Sun et al. 2023, arXiv:2306.11695, Eq. 1).

    Raises:
        ValueError: n outside 1 … m, a score of another shape, or an axis that m does
            not divide.
    """
    check_pattern(n, m)
    check_groups(weights.shape, m, axis)
    score = jnp.abs(weights) if score is None else score
    if score.shape != weights.shape:
        raise ValueError(
            f"score has shape {score.shape} but weights {weights.shape}: give one "
            "score a weight"
        )
    score = jnp.moveaxis(score, axis, -1)
    groups = score.reshape(*score.shape[:-1], -1, m)
    # Comparing all pairs of so few is faster than sorting. NaN counts as the largest.
    groups = jnp.where(jnp.isnan(groups), jnp.inf, groups)
    mine, other = groups[..., :, None], groups[..., None, :]
    earlier = jnp.arange(m) < jnp.arange(m)[:, None]
    better = (other > mine) | ((other == mine) & earlier)
    mask = better.sum(-1) < n
    return jnp.moveaxis(mask.reshape(score.shape), -1, axis)


@jax.custom_vjp
def sr_ste(
    weights: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    decay: float | Float[Array, ""] = 0.0,
) -> Float[Array, "*shape"]:
    """Return the kept weights; dropped ones get their gradient all the same, and decay.

    The gradient of the masked weights g becomes ``g + decay·(1 − mask)·weights`` of the
    weights (Zhou et al. 2021, arXiv:2102.04010, Eq. 9; the paper's decay is 2e-4, under
    plain SGD). With a decay of 0 it is the straight-through estimator. Training under
    a fixed mask needs neither: ``weights * mask`` has that gradient.

    Args:
        weights: dense.
        mask: of the weights that are kept, `nm_mask`'s or another.
        decay: λ_W. Constant: it gets no gradient.
    """
    del decay
    return jnp.where(mask, weights, 0)


def _sr_ste_forward(weights: Array, mask: Array, decay: float | Array) -> tuple:
    return jnp.where(mask, weights, 0), (weights, mask, decay)


def _sr_ste_backward(kept: tuple, gradient: Array) -> tuple:
    weights, mask, decay = kept
    pull = jnp.where(mask, 0, decay * weights)
    return (gradient + pull).astype(weights.dtype), None, None


sr_ste.defvjp(_sr_ste_forward, _sr_ste_backward)


def check_pattern(n: int, m: int) -> None:
    """Refuse a pattern that does not exist."""
    if not 1 <= n <= m:
        raise ValueError(
            f"n must be in 1 … m, got n={n} and m={m}: n of every m weights are kept"
        )


def check_groups(shape: tuple[int, ...], m: int, axis: int = 0) -> None:
    """Refuse an axis that groups of m do not divide."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis is {axis}, but weights of shape {shape} have no such")
    if shape[axis] % m:
        raise ValueError(
            f"axis {axis} of weights of shape {shape} has {shape[axis]} entries, which "
            f"groups of m={m} do not divide: choose another m, or leave them dense"
        )
