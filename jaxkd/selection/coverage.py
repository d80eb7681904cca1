"""Farthest-first covers: few centres so that every point is near one.

Gonzalez 1985's greedy k-center: the largest distance of a point to its nearest centre
is at most twice that of the best choice of as many centres. For 100,000 points of 1,000
classes memory is the points', and a block of distances (points, block).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count
from jaxkd.losses.basics import as_float


@checked(block=count)
@functools.partial(jax.jit, static_argnames="block")
def min_dist(
    pool: Float[Array, "pool features"],
    centers: Float[Array, "centers features"],
    block: int = 256,
) -> Float[Array, "pool"]:
    """Euclidean distance of every point to its nearest centre.

    Args:
        pool: the points.
        centers: at least one.
        block: centres at a time; it bounds the memory, not the result.

    Raises:
        ValueError: no centres, or of other features than the points.
    """
    _check(pool, centers)
    if len(centers) == 0:
        raise ValueError("centers is empty: a distance needs at least one centre")
    return jnp.sqrt(_squared_min_dist(as_float(pool), as_float(centers), block))


@checked()
def cover_radius(
    pool: Float[Array, "pool features"], centers: Float[Array, "centers features"]
) -> Float[Array, ""]:
    """Largest Euclidean distance of a point to its nearest centre.

    Args:
        pool: the points, at least one.
        centers: at least one.

    Raises:
        ValueError: as `min_dist`, or no points.
    """
    if len(pool) == 0:
        raise ValueError("pool is empty: no point, so no radius")
    return min_dist(pool, centers).max()


@checked()
def k_center_greedy(
    pool: Float[Array, "pool features"],
    centers: Float[Array, "centers features"],
    q: int,
) -> Int[Array, "picked"]:
    """Pick the point that is farthest from all centres, make it one, and repeat.

    Sener and Savarese 2017, arXiv:1708.00489, Algorithm 1.

    Args:
        pool: the points to pick from, at least one.
        centers: those that are there already; may be empty (0, features), then the
            first point is picked first.
        q: how many to pick; all points if there are fewer.

    Returns:
        Positions in the pool, in the order they were picked; of points equally far the
        first.

    Raises:
        ValueError: q is below 1, no points, or centres of other features.
    """
    _check(pool, centers)
    if q < 1:
        raise ValueError(f"q must be at least 1, got {q}")
    if len(pool) == 0:
        raise ValueError("pool is empty: there is nothing to pick from")
    return _picks(as_float(pool), as_float(centers), min(q, len(pool)))


@functools.partial(jax.jit, static_argnames="q")
def _picks(pool: Array, centers: Array, q: int) -> Array:
    nearest = jnp.full(len(pool), jnp.inf)
    if len(centers):
        nearest = _squared_min_dist(pool, centers, 256)

    def pick(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest, picks = carry
        best = nearest.argmax()
        to_new = jnp.sum((pool - pool[best]) ** 2, axis=-1)
        # Not 0: a point may lie on a centre without having been picked.
        nearest = jnp.minimum(nearest, to_new).at[best].set(-jnp.inf)
        return nearest, picks.at[i].set(best.astype(jnp.int32))

    return lax.fori_loop(0, q, pick, (nearest, jnp.zeros(q, jnp.int32)))[1]


def _squared_min_dist(pool: Array, centers: Array, block: int) -> Array:
    """Return squared distances to the nearest centre, by blocks of centres."""
    count = len(centers)
    blocks = -(-count // block)
    # Even blocks, of which the last is filled up with a centre that is there already.
    # Of one centre there must be one row: XLA's CPU compiler (jax 0.11.2, 0.12.0) gets
    # products with a row that is repeated wrong where their least is taken.
    size = -(-count // blocks)
    rows = jnp.minimum(jnp.arange(blocks * size), count - 1).reshape(blocks, size)
    lengths = jnp.sum(pool**2, axis=-1, keepdims=True)

    def nearer(nearest: Array, rows: Array) -> tuple[Array, None]:
        some = centers[rows]
        # In bf16, the default of matrix units, near points could not be told apart.
        products = jnp.matmul(pool, some.T, precision=lax.Precision.HIGHEST)
        squared = lengths - 2 * products + jnp.sum(some**2, axis=-1)
        return jnp.minimum(nearest, squared.min(axis=1)), None

    nearest, _ = lax.scan(nearer, jnp.full(len(pool), jnp.inf, pool.dtype), rows)
    return jnp.maximum(nearest, 0)


def _check(pool: Array, centers: Array) -> None:
    if jnp.shape(pool)[1:] != jnp.shape(centers)[1:]:
        raise ValueError(
            f"pool has shape {jnp.shape(pool)} but centers has shape "
            f"{jnp.shape(centers)}: both are rows of the same features"
        )
