"""Which proxy samples a client may speak about: filters by its own data's density.

EdgeFD asks whether a sample lies near a centroid of the client's data; Selective-FD
estimates the ratio of densities with a kernel, which costs a linear system.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.federated.clustering import nearest_centroid_distance
from jaxkd.losses.basics import as_float, check_positive


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
