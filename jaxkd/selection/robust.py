"""Robust active distillation: ask a teacher that may be wrong where it pays (RAD).

Baykal et al. 2023, arXiv:2210.01213: a sampling distribution p over the pool plays
against an adversary that makes the teacher wrong on any m examples. With gains g, what
a right label is worth, the game is

    max over p of (Σ p_i g_i − the sum of the m largest p_i g_i),

and its optimum is p ∝ 1/g on the k* largest gains. On them all p_i g_i are equal, so
that nothing is gained by choosing which are wrong; surer examples get MORE chance.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, own_check, positive
from jaxkd.losses.basics import as_float
from jaxkd.selection.pool import Pool
from jaxkd.selection.strategies import capped, margin_gain


class RadDistribution(NamedTuple):
    """The optimum of the game.

    Attributes:
        p: (examples,), the chance of each to be asked for.
        support: k*, how many have a chance.
        value: what is gained in the worst case; 0 or less says not to ask.
    """

    p: Array
    support: Array
    value: Array


@checked(mistakes=own_check, min_support=count, floor=positive)
def rad_distribution(
    gains: Float[Array, "examples"],
    mistakes: int | Int[Array, ""],
    *,
    penalty: float = 0.0,
    min_support: int = 1,
    floor: float = 1e-6,
) -> RadDistribution:
    """Return RAD's sampling distribution, in closed form.

    With the gains sorted down, k* maximises V_k = (k − (1 + w)·m) / Σ_{j ≤ k} 1/g_j
    over k > m, the smallest k of equals, and p_i = (1/g_i) / Σ_{j ≤ k*} 1/g_j. Without
    mistakes the largest gain alone is asked for; with many nearly all are.

    Args:
        gains: what a right label of each is worth, such as `margin_gain`'s.
        mistakes: m, how many of these examples the teacher may have wrong.
        penalty: w ≥ 0, what a wrong label costs, times its gain.
        min_support: k* at least, such as the labels to be drawn.
        floor: gains below it have no chance, unless there are too few others.

    Raises:
        ValueError: mistakes outside [0, examples − 1], gains below 0 or NaN, or fewer
            examples than min_support.
    """
    size = len(gains)
    if not isinstance(mistakes, Tracer) and not 0 <= mistakes < size:
        raise ValueError(
            f"mistakes must be 0 to {size - 1} (of {size} examples), got {mistakes}: "
            "where all labels may be wrong there is nothing to gain"
        )
    if size < min_support:
        raise ValueError(f"min_support is {min_support}, but there are {size} examples")
    if not isinstance(gains, Tracer) and not np.all(np.asarray(gains) >= 0):
        raise ValueError(f"gains must be at least 0, got {np.min(gains)}")
    p, support = _optimum(as_float(gains), mistakes, penalty, min_support, floor)
    worst = worst_case_value(p, gains, mistakes, penalty=penalty)
    return RadDistribution(p, support, worst)


@jax.jit
def _optimum(gains: Array, mistakes: Any, penalty: Any, min_support: Any, floor: Any):
    order = jnp.argsort(-gains, stable=True)
    inverse = 1 / jnp.maximum(gains[order], floor)
    total = jnp.cumsum(inverse)
    k = jnp.arange(1, len(gains) + 1)
    value = (k - (1 + penalty) * mistakes) / total
    allowed = (k > mistakes) & (k >= min_support)
    worthy = allowed & (gains[order] >= floor)
    value = jnp.where(jnp.where(worthy.any(), worthy, allowed), value, -jnp.inf)
    # The smallest of equals, which rounding tells apart.
    best = value.max()
    tied = value >= best - 8 * jnp.finfo(value.dtype).eps * jnp.abs(best)
    last = jnp.argmax(tied)
    p = jnp.where(k - 1 <= last, inverse / total[last], 0)
    return jnp.zeros_like(p).at[order].set(p), last + 1


@checked(mistakes=own_check)
def worst_case_value(
    p: Float[Array, "examples"],
    gains: Float[Array, "examples"],
    mistakes: int | Int[Array, ""],
    *,
    penalty: float = 0.0,
) -> Float[Array, ""]:
    """Return what sampling by p gains if the worst labels are wrong.

    Args:
        p: a distribution over the examples.
        gains: what a right label of each is worth.
        mistakes: how many labels are wrong: those of the largest p·g.
        penalty: what a wrong label costs, times its gain.
    """
    worth = jnp.sort(as_float(p) * as_float(gains))[::-1]
    wrong = jnp.arange(len(worth)) < mistakes
    return jnp.sum(jnp.where(wrong, -penalty, 1) * worth)


@checked()
def estimate_mistakes(teacher_right: Bool[Any, "validation"], size: int) -> int:
    """Return how many labels of a pool a teacher has wrong, by a validation set.

    Args:
        teacher_right: whether it is right on examples that it was not trained on.
        size: of the pool, which shrinks from round to round.

    Returns:
        The error's share of the pool, rounded, and at most ``size − 1``.

    Raises:
        ValueError: no validation examples.
    """
    right = np.asarray(teacher_right)
    if not right.size:
        raise ValueError(
            "teacher_right is empty: hold some labelled examples out from the teacher"
        )
    return min(round(size * (1 - right.mean())), size - 1)


@checked()
def sample_without_replacement(
    key: PRNGKeyArray, p: Float[Array, "examples"], q: int
) -> Int[Array, "picked"]:
    """Draw distinct examples, one after another, by p among those that are left.

    It takes the q largest of log p plus Gumbel noise (Kool et al. 2019,
    arXiv:1903.06059), which is the same. An example's chance to be among them is not
    q·p exactly.

    Args:
        key: of the draws.
        p: chances, which need not sum to 1.
        q: how many to draw.

    Raises:
        ValueError: q is above the examples that have a chance.
    """
    if not isinstance(p, Tracer) and q > (support := int((np.asarray(p) > 0).sum())):
        raise ValueError(
            f"q is {q}, but {support} examples have a chance: give rad_distribution "
            f"min_support={q}"
        )
    noise = jax.random.gumbel(key, jnp.shape(p))
    return jax.lax.top_k(jnp.log(p) + noise, q)[1]


@checked()
def rad_select(
    key: PRNGKeyArray, pool: Pool, q: int, *, mistakes: int
) -> Int[Array, "picked"]:
    """Pick by RAD's distribution, without replacement.

    Args:
        key: of the draws.
        pool: ``scores`` as the gains, or else ``probs`` of the STUDENT, whose
            `margin_gain` is taken: the teacher's would have to be asked for.
        q: how many to pick; at least as many have a chance.
        mistakes: how many of the pool's labels the teacher may have wrong
            (`estimate_mistakes`).

    Raises:
        ValueError: as `rad_distribution`.
    """
    scored = pool.scores is not None
    gains = pool.need("scores")[0] if scored else margin_gain(pool.need("probs")[0])
    q = capped(q, len(gains))
    found = rad_distribution(gains, mistakes, min_support=q)
    return sample_without_replacement(key, found.p, q)
