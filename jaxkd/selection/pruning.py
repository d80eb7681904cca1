"""Which part of a labelled data set to train on: selections by scores and by features.

They are selections like those of active learning, ``(key, pool, q) -> positions``;
`jaxkd.selection.keep_fraction` calls any of them for a share of a data set. The same
scores give the same choice: of equal ones the first example comes first.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, fraction
from jaxkd.losses.basics import as_float
from jaxkd.losses.directions import class_means, class_sums
from jaxkd.selection.pool import Pool
from jaxkd.selection.strategies import capped, in_turn

End = Literal["highest", "lowest"]
Picks = Int[Array, "picked"]


@checked()
def random_select(
    key: PRNGKeyArray, pool: Pool, q: int, *, balanced: bool = False
) -> Picks:
    """Pick at random.

    Args:
        key: of the choice.
        pool: anything, and ``labels`` to balance them.
        q: how many to pick.
        balanced: as many of each class as there are, as far as they last.

    Raises:
        ValueError: q is below 1, or the pool is empty.
    """
    size = pool.size
    q = capped(q, size)
    order = jax.random.permutation(key, size)
    return in_turn(order, pool.need("labels")[0], q) if balanced else order[:q]


@checked()
def top_select(
    key: PRNGKeyArray | None,
    pool: Pool,
    q: int,
    *,
    keep: End = "highest",
    balanced: bool = False,
) -> Picks:
    """Pick the examples of the highest or the lowest scores; NaN comes last.

    Without balance a hard part of a data set may lack whole classes, as in the papers.

    Args:
        key: not used.
        pool: ``scores``, and ``labels`` to balance them.
        q: how many to pick.
        keep: the highest are the hard ones, but of `aum_scores`.
        balanced: as many of each class, as far as they last.

    Raises:
        ValueError: q is below 1, or the pool is empty.
    """
    (scores,) = pool.need("scores")
    q = capped(q, pool.size)
    order = _ranked(scores, keep)
    return in_turn(order, pool.need("labels")[0], q) if balanced else order[:q]


@checked(prune_hard=fraction, bins=count)
def ccs_select(
    key: PRNGKeyArray,
    pool: Pool,
    q: int,
    *,
    prune_hard: float = 0.1,
    bins: int = 50,
    hard: End = "highest",
) -> Picks:
    """Pick at random from equal ranges of the score, the hardest examples left out.

    Zheng et al. 2022, arXiv:2210.15809, coverage-centric coreset selection: every range
    gives as many as the others, and one with fewer all it has.

    Args:
        key: of the choice.
        pool: ``scores``; an infinite one counts as the largest that is not.
        q: how many to pick.
        prune_hard: share of the examples that is left out first, in [0, 1).
        bins: ranges between the smallest and the largest score that is left.
        hard: which scores are the hard ones.

    Raises:
        ValueError: q is below 1 or above what is left, or the pool is empty.
    """
    (scores,) = pool.need("scores")
    size = pool.size
    left = _ranked(scores, hard)[int(prune_hard * size) :]
    if capped(q, size) > len(left):
        raise ValueError(
            f"q is {q}, but prune_hard {prune_hard:g} leaves {len(left)} of {size} "
            "examples: keep fewer, or lower prune_hard"
        )
    finite = jnp.where(jnp.isfinite(scores), scores, jnp.nan)
    high, low = jnp.nanmax(finite), jnp.nanmin(finite[left])
    value = jnp.nan_to_num(scores, nan=low, posinf=high, neginf=low)
    width = jnp.maximum(value[left].max() - low, jnp.finfo(value.dtype).tiny)
    which = jnp.clip((value - low) / width * bins, 0, bins - 1).astype(jnp.int32)
    return in_turn(left[jax.random.permutation(key, len(left))], which, q)


@checked()
def herding_select(key: PRNGKeyArray | None, pool: Pool, q: int) -> Picks:
    """Pick the examples whose mean stays nearest to their class's, each class in turn.

    Welling 2009 ("Herding dynamical weights to learn"), as coresets have it: of a class
    with mean μ and picks that sum to S, the t-th is the x nearest to t·μ − S.

    Args:
        key: not used.
        pool: ``features`` and ``labels``.
        q: how many to pick.

    Raises:
        ValueError: q is below 1, or the pool is empty.
    """
    features, labels = pool.need("features", "labels")
    q = capped(q, pool.size)
    classes = int(labels.max()) + 1
    quota = jnp.bincount(labels[in_turn(jnp.arange(pool.size), labels, q)])
    picks = np.asarray(_herd(as_float(features), labels, classes, int(quota.max())))
    return jnp.asarray(picks[picks < pool.size][:q])


@functools.partial(jax.jit, static_argnames=("classes", "steps"))
def _herd(features: Array, labels: Array, classes: int, steps: int) -> Array:
    """Return (steps · classes,) picks, round by round; one too many is no position."""
    size = len(features)
    means = class_means(*class_sums(features, labels, classes))

    def one(carry: tuple[Array, Array], step: Any):
        total, free = carry
        target = (step + 1) * means - total
        far = jnp.sum((features - target[labels]) ** 2, axis=-1)
        far = jnp.where(free, far, jnp.inf)
        best = jax.ops.segment_min(far, labels, classes)[labels]
        place = jnp.where(free & (far == best), jnp.arange(size), size)
        picks = jnp.minimum(jax.ops.segment_min(place, labels, classes), size)
        picked = features.at[picks].get(mode="fill", fill_value=0)
        return (total + picked, free.at[picks].set(False, mode="drop")), picks

    start = jnp.zeros_like(means), jnp.ones(size, bool)
    return lax.scan(one, start, jnp.arange(steps))[1].ravel()


def _ranked(scores: Array, first: End) -> Array:
    return jnp.argsort(scores if first == "lowest" else -scores, stable=True)
