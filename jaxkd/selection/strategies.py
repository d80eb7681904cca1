"""Which unlabelled examples to have labelled next: strategies of active learning.

Each returns positions in the pool, in the order they were picked; if ``q`` is above the
pool's size, all of them. They take a model's outputs, so any model will do.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked
from jaxkd.losses.basics import as_float, l2_normalize
from jaxkd.selection.coverage import k_center_greedy


@checked()
def pcoreset_select(
    pool_probs: Float[Array, "pool classes"],
    labelled_probs: Float[Array, "labelled classes"],
    q: int,
) -> Int[Array, "picked"]:
    """Pick by farthest-first coverage of the student's probabilities (PCoreSet).

    Kang et al. 2025, arXiv:2506.00910, Section 4: a student that learns from a
    vision-language model predicts in clusters, as its teacher does, and the cover
    reaches those that no label has reached. The centres to begin with are the labelled
    examples' predictions, not their labels.

    Args:
        pool_probs: predictions for the unlabelled examples.
        labelled_probs: predictions for the labelled examples.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, q below 1, or an empty pool.
    """
    _check_probs("pool_probs", pool_probs)
    _check_probs("labelled_probs", labelled_probs)
    return k_center_greedy(pool_probs, labelled_probs, q)


@checked()
def coreset_select(
    pool_features: Float[Array, "pool features"],
    labelled_features: Float[Array, "labelled features"],
    q: int,
) -> Int[Array, "picked"]:
    """Pick by farthest-first coverage of the features' directions (CoreSet).

    Sener and Savarese 2017, arXiv:1708.00489, with the cosine distance, as Kang et al.
    2025 run it: of unit vectors it orders as the Euclidean distance does.

    Args:
        pool_features: of the unlabelled examples.
        labelled_features: of the labelled examples.
        q: how many to pick.

    Raises:
        ValueError: q is below 1, or the pool is empty.
    """
    pool, labelled = (
        l2_normalize(as_float(x)) for x in (pool_features, labelled_features)
    )
    return k_center_greedy(pool, labelled, q)


@checked()
def entropy_select(
    pool_probs: Float[Array, "pool classes"], q: int
) -> Int[Array, "picked"]:
    """Pick the examples of the highest predictive entropy, the highest first.

    Args:
        pool_probs: predictions for the unlabelled examples.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, q below 1, or an empty pool.
    """
    _check_probs("pool_probs", pool_probs)
    q = _count(q, len(pool_probs))
    p = as_float(pool_probs)
    return lax.top_k(-jnp.sum(p * jnp.log(p + 1e-10), axis=-1), q)[1]


@checked()
def random_select(key: PRNGKeyArray, pool_size: int, q: int) -> Int[Array, "picked"]:
    """Pick at random.

    Args:
        key: of the choice.
        pool_size: unlabelled examples.
        q: how many to pick.

    Raises:
        ValueError: q is below 1, or the pool is empty.
    """
    return jax.random.permutation(key, pool_size)[: _count(q, pool_size)]


@checked()
def class_balanced_select(
    key: PRNGKeyArray,
    pool_probs: Float[Array, "pool classes"],
    labels: Int[Array, "labelled"],
    q: int,
) -> Int[Array, "picked"]:
    """Pick at random within predicted classes, more of those with few labels.

    As Kang et al. 2025 (arXiv:2506.00910) run it: the classes that the pool's
    predictions have share q by 1/(labels of the class + 1), rounded down; what is left
    goes to the largest shares. What a class cannot fill is picked at random from all.

    Args:
        key: of the choice.
        pool_probs: predictions for the unlabelled examples.
        labels: of the labelled examples.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, q below 1, or an empty pool.
    """
    _check_probs("pool_probs", pool_probs)
    size, classes = np.shape(pool_probs)
    q = _count(q, size)
    predicted = jnp.argmax(pool_probs, axis=-1)
    counts = jnp.bincount(labels, length=classes)
    present = jnp.bincount(predicted, length=classes) > 0
    share = jnp.where(present, 1 / (counts + 1), 0)
    quota = jnp.floor(q * share / share.sum() + 1e-6).astype(jnp.int32)
    by_share = jnp.argsort(-share, stable=True)
    quota = quota.at[by_share].add(jnp.arange(classes) < q - quota.sum())

    order = jax.random.permutation(key, size)
    of_class = jax.nn.one_hot(predicted[order], classes, dtype=jnp.int32)
    rank = jnp.sum((jnp.cumsum(of_class, axis=0) - 1) * of_class, axis=-1)
    beyond = rank >= quota[predicted[order]]
    return order[jnp.argsort(beyond, stable=True)[:q]]


@checked()
def badge_select(
    key: PRNGKeyArray,
    pool_probs: Float[Array, "pool classes"],
    pool_features: Float[Array, "pool features"],
    q: int,
) -> Int[Array, "picked"]:
    """Pick uncertain and diverse examples by their gradients (BADGE).

    Ash et al. 2019, arXiv:1906.03671: k-means++ over the last layer's gradient for the
    predicted class, (p − onehot(argmax p)) ⊗ g. The longest is first; the next are
    drawn in proportion to the squared distance to the nearest pick. The gradients,
    (pool, classes·features), are never made: products of their factors give distances.

    Args:
        key: of the draws.
        pool_probs: p, predictions for the unlabelled examples.
        pool_features: g, what the last layer reads of them.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, of another number than the features', q
            below 1, or an empty pool.
    """
    _check_probs("pool_probs", pool_probs)
    if len(pool_probs) != len(pool_features):
        raise ValueError(
            f"pool_probs has {len(pool_probs)} rows but pool_features has "
            f"{len(pool_features)}: give both of the same examples"
        )
    q = _count(q, len(pool_probs))
    return _badge(key, as_float(pool_probs), as_float(pool_features), q)


@functools.partial(jax.jit, static_argnames="q")
def _badge(key: PRNGKeyArray, p: Array, g: Array, q: int) -> Array:
    error = p - jax.nn.one_hot(p.argmax(-1), p.shape[-1], dtype=p.dtype)
    lengths = jnp.sum(error**2, axis=-1) * jnp.sum(g**2, axis=-1)

    def to(pick: Any) -> Array:
        """Return every example's squared distance to one."""
        with jax.default_matmul_precision("highest"):
            products = (error @ error[pick]) * (g @ g[pick])
        return jnp.maximum(lengths + lengths[pick] - 2 * products, 0)

    def draw(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest, picks = carry
        # -inf for those picked; where all others lie on picks, any of them.
        left = jnp.isfinite(nearest)
        chance = jnp.where(left, jnp.where(jnp.any(nearest > 0), nearest, 1.0), 0.0)
        pick = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(chance))
        return after(nearest, pick), picks.at[i].set(pick.astype(jnp.int32))

    def after(nearest: Array, pick: Any) -> Array:
        return jnp.minimum(nearest, to(pick)).at[pick].set(-jnp.inf)

    first = lengths.argmax()
    # Infinity would count as picked.
    nearest = after(jnp.full(len(p), jnp.finfo(p.dtype).max), first)
    picks = jnp.zeros(q, jnp.int32).at[0].set(first.astype(jnp.int32))
    return lax.fori_loop(1, q, draw, (nearest, picks))[1]


def _count(q: int, size: int) -> int:
    if q < 1:
        raise ValueError(f"q must be at least 1, got {q}")
    if size < 1:
        raise ValueError("the pool is empty: there is nothing to pick from")
    return min(q, size)


def _check_probs(name: str, probs: Any) -> None:
    if isinstance(probs, Tracer):
        return
    sums = np.asarray(probs).sum(-1, dtype=np.float32)
    bad = np.flatnonzero(~(np.abs(sums - 1) < 1e-2))
    if len(bad):
        raise ValueError(
            f"{name} must hold probabilities that sum to 1; row {bad[0]} sums to "
            f"{sums[bad[0]]:.4g}: pass softmax(logits)"
        )
