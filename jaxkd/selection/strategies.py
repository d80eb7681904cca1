"""Which unlabelled examples to have labelled next: strategies of active learning.

Each is a selection, ``(key, pool, q) -> positions`` in the pool, in the order they were
picked; if ``q`` is above the pool's size, all of them. They read a model's outputs from
the `Pool`, so any model will do. The key may be None where nothing is random.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, positive
from jaxkd.losses.basics import as_float, l2_normalize
from jaxkd.selection.coverage import k_center_greedy
from jaxkd.selection.pool import Pool

Picks = Int[Array, "picked"]


@checked()
def pcoreset_select(key: PRNGKeyArray | None, pool: Pool, q: int) -> Picks:
    """Pick by farthest-first coverage of the student's probabilities (PCoreSet).

    Kang et al. 2025, arXiv:2506.00910, Section 4: a student that learns from a
    vision-language model predicts in clusters, as its teacher does, and the cover
    reaches those that no label has reached. The centres to begin with are the labelled
    examples' predictions, not their labels.

    Args:
        key: not used.
        pool: ``probs``, and ``chosen_probs`` of the labelled examples.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, q below 1, or an empty pool.
    """
    probs, chosen = pool.need("probs", "chosen_probs")
    check_probs("pool.probs", probs)
    check_probs("pool.chosen_probs", chosen)
    return k_center_greedy(probs, chosen, q)


@checked()
def coreset_select(key: PRNGKeyArray | None, pool: Pool, q: int) -> Picks:
    """Pick by farthest-first coverage of the features' directions (CoreSet).

    Sener and Savarese 2017, arXiv:1708.00489, with the cosine distance, as Kang et al.
    2025 run it: of unit vectors it orders as the Euclidean distance does.

    Args:
        key: not used.
        pool: ``features``, and ``chosen_features`` of the labelled examples.
        q: how many to pick.

    Raises:
        ValueError: q is below 1, or the pool is empty.
    """
    found = pool.need("features", "chosen_features")
    features, chosen = (l2_normalize(as_float(x)) for x in found)
    return k_center_greedy(features, chosen, q)


@checked()
def entropy_gain(probs: Float[Array, "examples classes"]) -> Float[Array, "examples"]:
    """Return each prediction's entropy over the logarithm of the classes, in [0, 1].

    Args:
        probs: predictions.

    Raises:
        ValueError: fewer than two classes, or rows that do not sum to 1.
    """
    p = _two_classes(probs)
    return jax.scipy.special.entr(p).sum(-1) / math.log(p.shape[-1])


@checked()
def margin_gain(probs: Float[Array, "examples classes"]) -> Float[Array, "examples"]:
    """Return 1 less the margin of the two largest probabilities, in [0, 1].

    Args:
        probs: predictions.

    Raises:
        ValueError: fewer than two classes, or rows that do not sum to 1.
    """
    best = lax.top_k(_two_classes(probs), 2)[0]
    return 1 - (best[:, 0] - best[:, 1])


@checked()
def entropy_select(key: PRNGKeyArray | None, pool: Pool, q: int) -> Picks:
    """Pick the examples of the highest predictive entropy, the highest first.

    Args:
        key: not used.
        pool: ``probs``.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, q below 1, or an empty pool.
    """
    gains = entropy_gain(pool.need("probs")[0])
    return lax.top_k(gains, capped(q, len(gains)))[1]


@checked()
def margin_select(key: PRNGKeyArray | None, pool: Pool, q: int) -> Picks:
    """Pick the examples of the smallest margin of the two best classes, it first.

    Args:
        key: not used.
        pool: ``probs``.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, q below 1, or an empty pool.
    """
    gains = margin_gain(pool.need("probs")[0])
    return lax.top_k(gains, capped(q, len(gains)))[1]


@checked(ratio=positive, cluster_size=count)
def cluster_margin_select(
    key: PRNGKeyArray,
    pool: Pool,
    q: int,
    *,
    ratio: float = 10.0,
    cluster_size: int = 10,
) -> Picks:
    """Pick examples of small margins from clusters in turn, the smallest cluster first.

    Citovsky et al. 2021, arXiv:2107.14263. The clusters are the points nearest to the
    centres of a farthest-first cover, where the paper has agglomerative clusters, whose
    memory grows with the square of the pool.

    Args:
        key: of the order within a cluster.
        pool: ``probs`` and ``features``.
        q: how many to pick.
        ratio: times q, the examples of the smallest margins that are candidates.
        cluster_size: examples of the pool to a cluster, on average.

    Raises:
        ValueError: rows that do not sum to 1, q below 1, or an empty pool.
    """
    (features,), size = pool.need("features"), pool.size
    q = capped(q, size)
    candidates = margin_select(None, pool, min(max(math.ceil(ratio * q), q), size))
    clusters = nearest_center(as_float(features), -(-size // cluster_size))[candidates]
    of_cluster = jnp.bincount(clusters, length=size)[clusters]
    order = jax.random.permutation(key, len(candidates))
    order = order[jnp.argsort(of_cluster[order], stable=True)]
    return candidates[in_turn(order, clusters, q)]


@checked()
def nearest_center(
    features: Float[Array, "examples features"], centers: int
) -> Int[Array, "examples"]:
    """Return which centre of a farthest-first cover each point is nearest to.

    Args:
        features: the points.
        centers: of the cover, which are points.
    """
    picks = k_center_greedy(features, features[:0], centers)
    squared = jnp.sum(features**2, -1)
    products = jnp.matmul(features, features[picks].T, precision=lax.Precision.HIGHEST)
    return jnp.argmin(squared[picks] - 2 * products, axis=-1)


@checked()
def class_balanced_select(key: PRNGKeyArray, pool: Pool, q: int) -> Picks:
    """Pick at random within predicted classes, more of those with few labels.

    As Kang et al. 2025 (arXiv:2506.00910) run it: the classes that the pool's
    predictions have share q by 1/(labels of the class + 1), rounded down; what is left
    goes to the largest shares. What a class cannot fill is picked at random from all.

    Args:
        key: of the choice.
        pool: ``probs``, and ``chosen_labels`` of the labelled examples.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, q below 1, or an empty pool.
    """
    probs, labels = pool.need("probs", "chosen_labels")
    check_probs("pool.probs", probs)
    size, classes = probs.shape
    q = capped(q, size)
    predicted = jnp.argmax(probs, axis=-1)
    counts = jnp.bincount(labels, length=classes)
    present = jnp.bincount(predicted, length=classes) > 0
    share = jnp.where(present, 1 / (counts + 1), 0)
    quota = jnp.floor(q * share / share.sum() + 1e-6).astype(jnp.int32)
    by_share = jnp.argsort(-share, stable=True)
    quota = quota.at[by_share].add(jnp.arange(classes) < q - quota.sum())

    order = jax.random.permutation(key, size)
    beyond = rank_in_group(predicted[order]) >= quota[predicted[order]]
    return order[jnp.argsort(beyond, stable=True)[:q]]


@checked()
def badge_select(key: PRNGKeyArray, pool: Pool, q: int) -> Picks:
    """Pick uncertain and diverse examples by their gradients (BADGE).

    Ash et al. 2019, arXiv:1906.03671: k-means++ over the last layer's gradient for the
    predicted class, (p − onehot(argmax p)) ⊗ g. The longest is first; the next are
    drawn in proportion to the squared distance to the nearest pick. The gradients,
    (pool, classes·features), are never made: products of their factors give distances.

    Args:
        key: of the draws.
        pool: ``probs`` p, and ``features`` g.
        q: how many to pick.

    Raises:
        ValueError: rows that do not sum to 1, of another number than the features', q
            below 1, or an empty pool.
    """
    probs, features = pool.need("probs", "features")
    check_probs("pool.probs", probs)
    q = capped(q, pool.size)
    return _badge(key, as_float(probs), as_float(features), q)


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


@checked()
def capped(q: int, size: int) -> int:
    """Return q, or the pool's size if that is less.

    Raises:
        ValueError: q below 1, or an empty pool.
    """
    if q < 1:
        raise ValueError(f"q must be at least 1, got {q}")
    if size < 1:
        raise ValueError("the pool is empty: there is nothing to pick from")
    return min(q, size)


@jax.jit
def rank_in_group(groups: Int[Array, "examples"]) -> Int[Array, "examples"]:
    """Return how many examples of the same group stand before each.

    Args:
        groups: each example's, an integer.
    """
    order = jnp.argsort(groups, stable=True)
    found = groups[order]
    start = jnp.searchsorted(found, found, side="left")
    return jnp.zeros_like(order).at[order].set(jnp.arange(len(groups)) - start)


@checked()
def in_turn(
    order: Int[Array, "some"], groups: Int[Array, "examples"], q: int
) -> Int[Array, "picked"]:
    """Return the first q of an order, taken from each group in turn.

    So every group gives as many as the others until it has no more.

    Args:
        order: positions.
        groups: of the example at each position, an integer.
        q: how many to take.
    """
    rank = rank_in_group(groups[order])
    return order[jnp.argsort(rank, stable=True)[:q]]


@checked()
def check_probs(name: str, probs: Any) -> None:
    """Refuse rows that do not sum to 1.

    Raises:
        ValueError: it names the array, the first such row and its sum.
    """
    if isinstance(probs, Tracer):
        return
    sums = np.asarray(probs).sum(-1, dtype=np.float32)
    bad = np.flatnonzero(~(np.abs(sums - 1) < 1e-2))
    if len(bad):
        raise ValueError(
            f"{name} must hold probabilities that sum to 1; row {bad[0]} sums to "
            f"{sums[bad[0]]:.4g}: pass softmax(logits)"
        )


def _two_classes(probs: Array) -> Array:
    check_probs("probs", probs)
    if probs.shape[-1] < 2:
        raise ValueError("probs has 1 class: uncertainty is between at least 2")
    return as_float(probs)
