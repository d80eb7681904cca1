"""k-means as pure functions, for filters that a client fits on its own data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxkd.arguments import checked, count
from jaxkd.losses.basics import as_float


def _squared_distances(
    x: Float[Array, "samples features"], centroids: Float[Array, "k features"]
) -> Float[Array, "samples k"]:
    # Differences, not |x|² − 2xc + |c|²: that loses the digits of small distances.
    return jnp.sum((x[:, None] - centroids[None]) ** 2, axis=-1)


def _check_features(x: Array, centroids: Array) -> None:
    if jnp.ndim(centroids) != 2 or len(centroids) < 1:
        raise ValueError(
            f"centroids has shape {jnp.shape(centroids)}: give at least one, as "
            "kmeans_fit returns them (k, features)"
        )
    if jnp.ndim(x) != 2 or x.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"x has shape {jnp.shape(x)} but centroids {jnp.shape(centroids)}: flatten "
            "the samples to (samples, features), with the features of the fit"
        )


@checked()
def nearest_centroid_distance(
    x: Float[Array, "samples features"], centroids: Float[Array, "k features"]
) -> Float[Array, "samples"]:
    """Return each sample's Euclidean distance to the nearest centroid.

    Raises:
        ValueError: the features differ, or there is no centroid.
    """
    _check_features(x, centroids)
    nearest = _squared_distances(as_float(x), as_float(centroids)).min(-1)
    return jnp.sqrt(nearest)


@checked(k=count)
def kmeans_fit(
    x: Float[Array, "samples features"], k: int, key: PRNGKeyArray, iterations: int = 25
) -> tuple[Float[Array, "k features"], Float[Array, ""]]:
    """Fit k centroids: k-means++ seeding (Arthur and Vassilvitskii 2007), then Lloyd.

    A centroid that loses all its samples stays where it is. Of k or fewer samples every
    one is a centroid.

    Args:
        x: the samples.
        k: the number of centroids.
        key: of the seeding.
        iterations: of Lloyd's algorithm.

    Returns:
        The centroids, and the sum of squared distances to the nearest.

    Raises:
        ValueError: k or the number of samples is below 1, or ``x`` is no matrix.
    """
    if jnp.ndim(x) != 2 or len(x) < 1:
        raise ValueError(
            f"x has shape {jnp.shape(x)}: give at least one sample, as (samples, "
            "features)"
        )
    x = as_float(x)
    if len(x) <= k:
        return x, jnp.zeros((), x.dtype)

    middle = x.mean(0)

    def seed(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centroids, nearest = carry
        # Of duplicates alone every distance is 0: then any sample will do.
        log_p = jnp.where(nearest.sum() > 0, jnp.log(nearest), 0.0)
        chosen = x[jax.random.categorical(jax.random.fold_in(key, i), log_p)]
        distance = jnp.sum((x - chosen) ** 2, axis=-1)
        return centroids.at[i].set(chosen), jnp.minimum(nearest, distance)

    def lloyd(_: Array, centroids: Array) -> Array:
        # Of |x|² − 2xc + |c|², |x|² chooses nothing: a matrix product is left. From
        # the mean, so that data far from 0 keep their digits.
        c = centroids - middle
        nearest = (jnp.sum(c**2, axis=-1) - 2 * (x - middle) @ c.T).argmin(-1)
        member = jax.nn.one_hot(nearest, k, dtype=x.dtype)
        size = member.sum(0)[:, None]
        mean = member.T @ x / jnp.maximum(size, 1)
        return jnp.where(size > 0, mean, centroids)

    first = x[jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(x))]
    start = jnp.broadcast_to(first, (k, x.shape[1]))
    centroids, _ = jax.lax.fori_loop(
        1, k, seed, (start, jnp.sum((x - first) ** 2, axis=-1))
    )
    centroids = jax.lax.fori_loop(0, iterations, lloyd, centroids)
    return centroids, _squared_distances(x, centroids).min(-1).sum()
