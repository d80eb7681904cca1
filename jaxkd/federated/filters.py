"""Which proxy samples a client may speak about: filters by its own data's density.

EdgeFD asks whether a sample lies near a centroid of the client's data; Selective-FD
estimates the ratio of densities with a kernel, which costs a linear system.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxkd.arguments import checked, positive
from jaxkd.federated.clustering import kmeans_fit, nearest_centroid_distance
from jaxkd.losses.basics import as_float, check_positive

_fit_centroids = jax.jit(kmeans_fit, static_argnames=("k", "iterations"))


@checked()
def id_threshold(
    x: Float[Array, "samples features"],
    centroids: Float[Array, "k features"],
    percentile: float = 90.0,
) -> Float[Array, ""]:
    """Return the distance within which that share of a client's own samples lie.

    Args:
        x: the client's samples.
        centroids: fitted on them.
        percentile: in [0, 100].

    Raises:
        ValueError: a percentile out of range, features that differ, or no centroid.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be in [0, 100], got {percentile}")
    return jnp.percentile(nearest_centroid_distance(x, centroids), percentile)


@checked()
def edgefd_mask(
    x: Float[Array, "samples features"],
    centroids: Float[Array, "k features"],
    threshold: float | Float[Array, ""],
    own: Bool[Array, "samples"] | None = None,
) -> Bool[Array, "samples"]:
    """Two-stage client filter: own samples, and those within a distance of a centroid.

    Mujtaba et al. 2025, arXiv:2508.14769. It replaces the density ratio by the nearest
    centroid's distance, and is computed once, since neither proxies nor centroids
    change.

    Args:
        x: the proxy samples' features, scaled as the client's were.
        centroids: fitted on the client's data.
        threshold: the distance, from `id_threshold`.
        own: samples that the client gave itself, in distribution without a test.

    Raises:
        ValueError: features that differ, or no centroid.
    """
    near = nearest_centroid_distance(x, centroids) <= threshold
    return near if own is None else near | own


def _kernel(x: Array, y: Array, width: Any) -> Array:
    # A matrix product, since samples by samples by features would not fit in memory.
    square = jnp.sum(x**2, -1)[:, None] + jnp.sum(y**2, -1) - 2 * x @ y.T
    return jnp.exp(-jnp.maximum(square, 0) / (2 * width**2))


def _check_kulsif(width: Any, regularization: Any) -> None:
    check_positive("width", width)
    check_positive("regularization", regularization)


@checked()
def kulsif_fit(
    known: Float[Array, "known features"],
    auxiliary: Float[Array, "auxiliary features"],
    width: float | Float[Array, ""],
    regularization: float | Float[Array, ""],
) -> Float[Array, "auxiliary"]:
    """Fit a density ratio, of known samples to auxiliary ones, by kernel least squares.

    KuLSIF, Kanamori, Suzuki and Sugiyama 2012 ("Statistical analysis of kernel-based
    least-squares density-ratio estimation"), with the kernel exp(−‖x − y‖²/2w²): of n
    auxiliary samples A and m known samples X it solves
    (k(A, A)/n + λI)·α = −k(A, X)·1/(n·m·λ). Selective-FD's released code multiplies by
    the matrix where it should by the inverse; here the system is solved.

    Args:
        known: X, the client's samples.
        auxiliary: A, such as uniform noise over the features' range.
        width: w > 0.
        regularization: λ > 0.

    Returns:
        α, for `kulsif_ratio`.

    Raises:
        ValueError: w or λ is not above 0.
    """
    _check_kulsif(width, regularization)
    known, auxiliary = as_float(known), as_float(auxiliary)
    n, m = len(auxiliary), len(known)
    matrix = _kernel(auxiliary, auxiliary, width) / n
    matrix += regularization * jnp.eye(n, dtype=matrix.dtype)
    right = -_kernel(auxiliary, known, width).sum(1) / (n * m * regularization)
    return jax.scipy.linalg.solve(matrix, right, assume_a="pos")


@checked(width=positive)
def kulsif_ratio(
    x: Float[Array, "samples features"],
    known: Float[Array, "known features"],
    auxiliary: Float[Array, "auxiliary features"],
    alpha: Float[Array, "auxiliary"],
    width: float | Float[Array, ""],
    regularization: float | Float[Array, ""],
) -> Float[Array, "samples"]:
    """Return the fitted ratio at x: k(x, A)·α + mean of k(x, X)/λ.

    Args:
        x: where to evaluate.
        known: X, as in `kulsif_fit`.
        auxiliary: A, likewise.
        alpha: what the fit returned.
        width: as in the fit.
        regularization: likewise.

    Raises:
        ValueError: w or λ is not above 0.
    """
    _check_kulsif(width, regularization)
    x, known, auxiliary = as_float(x), as_float(known), as_float(auxiliary)
    near = _kernel(x, known, width).mean(1) / regularization
    return _kernel(x, auxiliary, width) @ alpha + near


Filter = Callable[..., Bool[Array, "samples"]]
"""A client's: ``(proxies, own=None) ->`` which of them it speaks about."""


@checked()
def centroid_filter(
    known: Float[np.ndarray | Array, "known features"],
    key: PRNGKeyArray,
    k: int = 5,
    percentile: float = 90.0,
) -> Filter:
    """Fit EdgeFD's filter on a client's samples: k-means, and the distance that passes.

    Args:
        known: the client's samples.
        key: of k-means.
        k: the number of centroids.
        percentile: of the client's own samples that pass.

    Raises:
        ValueError: a percentile out of range, k below 1, or no samples.
    """
    known = jnp.asarray(known)
    centroids, _ = _fit_centroids(known, k, key)
    threshold = id_threshold(known, centroids, percentile)

    def passes(proxies: Any, own: Any = None) -> Array:
        own = None if own is None else jnp.asarray(own)
        return edgefd_mask(jnp.asarray(proxies), centroids, threshold, own)

    return passes


@checked()
def density_filter(
    known: Float[np.ndarray | Array, "known features"],
    key: PRNGKeyArray,
    percentile: float = 95.0,
) -> Filter:
    """Fit Selective-FD's filter on a client's samples: KuLSIF's density ratio.

    Args:
        known: the client's samples.
        key: of the auxiliary ones.
        percentile: of the client's own samples that pass, as in `centroid_filter`.
    """
    known = jnp.asarray(known)
    kernel = kulsif_kernel(known, key)

    def passes(proxies: Any, own: Any = None) -> Array:
        likely = _likely(jnp.asarray(proxies), known, *kernel, percentile)
        return likely if own is None else likely | jnp.asarray(own)

    return passes


@checked()
def kulsif_kernel(
    known: Float[Array, "known features"], key: PRNGKeyArray, samples: int = 500
) -> tuple[Float[Array, "auxiliary features"], float, float]:
    """Return auxiliary samples, width and λ by rules that look at no result.

    The samples are uniform in the range of all values, the width is the median distance
    of known samples, and λ is min(n, m)^−0.9 (Kanamori et al. 2012).

    Args:
        known: X, as in `kulsif_fit`.
        key: of the auxiliary samples.
        samples: how many of them.
    """
    auxiliary = jax.random.uniform(
        key, (samples, known.shape[1]), minval=known.min(), maxval=known.max()
    )
    some = np.asarray(known[:500])
    square = (some**2).sum(1)
    distances = np.sqrt(np.maximum(square[:, None] + square - 2 * some @ some.T, 0))
    width = float(np.median(distances[np.triu_indices(len(some), 1)]))
    return auxiliary, width, float(min(len(known), samples) ** -0.9)


@jax.jit
def _likely(proxies, known, auxiliary, width, regularization, percentile):
    """Return where the ratio is at least the known samples' lowest but a few."""
    alpha = kulsif_fit(known, auxiliary, width, regularization)
    own, others = (
        kulsif_ratio(x, known, auxiliary, alpha, width, regularization)
        for x in (known, proxies)
    )
    return others >= jnp.percentile(own, 100 - percentile)
