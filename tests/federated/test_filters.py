"""k-means against scikit-learn, density ratios by their objective, and the filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from jaxkd.federated import (
    edgefd_mask,
    id_threshold,
    kmeans_fit,
    kulsif_fit,
    kulsif_ratio,
    nearest_centroid_distance,
)

fit = jax.jit(kmeans_fit, static_argnames=("k", "iterations"))


@pytest.fixture(scope="module")
def clusters():
    """Forty points around each of four corners."""
    rng = np.random.default_rng(0)
    corners = np.repeat([[0, 0], [0, 9], [9, 0], [9, 9]], 40, axis=0)
    return (corners + rng.normal(size=(160, 2))).astype("f4")


def by_place(centroids):
    return np.array(sorted(np.asarray(centroids).round(6).tolist()))


def test_kmeans_finds_what_scikit_learn_finds(clusters):
    reference = KMeans(4, n_init=10, random_state=0).fit(clusters.astype("f8"))
    # Of five seeds the best: seeding may start two centroids in one cluster.
    fits = [fit(jnp.asarray(clusters), 4, jax.random.key(i)) for i in range(5)]
    centroids, inertia = min(fits, key=lambda found: float(found[1]))
    np.testing.assert_allclose(inertia, reference.inertia_, rtol=1e-5)
    np.testing.assert_allclose(
        by_place(centroids), by_place(reference.cluster_centers_), atol=1e-4
    )


def test_kmeans_goes_on_from_a_start_as_lloyds_algorithm(clusters):
    x = jnp.asarray(clusters)
    start, _ = fit(x, 3, jax.random.key(3), iterations=0)
    # Seeds are samples, and different ones.
    assert (np.abs(np.asarray(start)[:, None] - clusters).sum(-1).min(1) == 0).all()
    assert len(np.unique(start, axis=0)) == 3
    expected = np.asarray(start, "f8")
    inertias = []
    for steps in range(1, 8):
        nearest = ((clusters[:, None] - expected) ** 2).sum(-1).argmin(1)
        expected = np.stack([clusters[nearest == j].mean(0) for j in range(3)])
        if steps in (1, 7):
            found, inertia = fit(x, 3, jax.random.key(3), iterations=steps)
            np.testing.assert_allclose(found, expected, rtol=1e-5)
            inertias.append(float(inertia))
    assert inertias[1] <= inertias[0]


def test_clusters_far_from_zero_are_found_as_well(clusters):
    far = clusters + np.float32(4096)
    a, _ = fit(jnp.asarray(clusters), 4, jax.random.key(0))
    b, _ = fit(jnp.asarray(far), 4, jax.random.key(0))
    np.testing.assert_allclose(b - 4096, a, atol=2e-3)


def test_seeding_prefers_samples_that_are_far():
    x = jnp.concatenate([jnp.zeros((500, 1)), jnp.full((2, 1), 100.0)])
    for seed in range(5):
        start, _ = fit(x, 2, jax.random.key(seed), iterations=0)
        assert sorted(start[:, 0].tolist()) == [0.0, 100.0]


def test_a_centroid_without_samples_stays():
    """Of duplicates alone all but one centroid are empty."""
    x = jnp.full((6, 2), 3.0)
    centroids, inertia = fit(x, 4, jax.random.key(0))
    np.testing.assert_array_equal(centroids, 3)
    assert inertia == 0


def test_few_samples_are_their_own_centroids():
    x = jnp.arange(6.0).reshape(3, 2)
    centroids, inertia = kmeans_fit(x, 5, jax.random.key(0))
    np.testing.assert_array_equal(centroids, x)
    assert inertia == 0


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_arguments_of_kmeans():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        kmeans_fit(jnp.ones((4, 2)), 0, key)
    with pytest.raises(ValueError, match=r"x has shape \(0, 2\): give at least one"):
        kmeans_fit(jnp.ones((0, 2)), 1, key)
    with pytest.raises(ValueError, match=r"x has shape \(4,\)"):
        kmeans_fit(jnp.ones(4), 1, key)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\) but centroids \(1, 2"):
        nearest_centroid_distance(jnp.ones((4, 3)), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"centroids has shape \(0, 3\): give at"):
        nearest_centroid_distance(jnp.ones((4, 3)), jnp.ones((0, 3)))
    with pytest.raises(ValueError, match=r"percentile must be in \[0, 100\], got 101"):
        id_threshold(jnp.ones((4, 3)), jnp.ones((1, 3)), 101)


def test_distances_and_thresholds(clusters, x64):
    centroids = np.array([[0.0, 0.0], [9.0, 9.0]])
    expected = np.sqrt(((clusters[:, None] - centroids) ** 2).sum(-1)).min(1)
    x = jnp.asarray(clusters, jnp.float64)
    found = nearest_centroid_distance(x, jnp.asarray(centroids))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    threshold = id_threshold(x, jnp.asarray(centroids), 90.0)
    np.testing.assert_allclose(threshold, np.percentile(expected, 90), rtol=1e-12)
    assert np.mean(found <= threshold) == pytest.approx(0.9, abs=0.01)


def test_small_distances_keep_their_digits():
    """|x|² − 2xc + |c|² in float32 would make 0 of this."""
    x = jnp.full((1, 4), 100.0)
    found = nearest_centroid_distance(x + 1e-3, x)
    expected = 2 * (np.float32(100.001) - np.float32(100))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_mask_is_near_or_own(clusters):
    centroids = jnp.zeros((1, 2))
    x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 5.1], [9.0, 9.0]])
    assert edgefd_mask(x, centroids, 5.0).tolist() == [True, True, False, False]
    own = jnp.array([False, False, False, True])
    assert edgefd_mask(x, centroids, 5.0, own).tolist() == [True, True, False, True]


WIDTH, LAMBDA = 1.3, 0.07


def drawn(dtype):
    rng = np.random.default_rng(0)
    known = rng.normal(0, 1, (30, 3))
    return jnp.asarray(known, dtype), jnp.asarray(rng.uniform(-3, 3, (20, 3)), dtype)


def ratio(x, known, auxiliary):
    alpha = kulsif_fit(known, auxiliary, WIDTH, LAMBDA)
    return kulsif_ratio(x, known, auxiliary, alpha, WIDTH, LAMBDA)


def test_the_ratio_is_where_its_objective_is_stationary(x64):
    """½·mean over A of r² − mean over X of r + λ/2·‖r‖², in the kernel's space.

    Its gradient is a function: mean of r(a)·k(a, ·) − mean of k(x, ·) + λ·r.
    """
    known, auxiliary = drawn(jnp.float64)
    x = np.random.default_rng(1).normal(size=(7, 3))

    def kernel(a, b):
        square = ((np.asarray(a)[:, None] - np.asarray(b)) ** 2).sum(-1)
        return np.exp(-square / (2 * WIDTH**2))

    r = np.asarray(ratio(auxiliary, known, auxiliary))
    gradient = kernel(x, auxiliary) @ r / len(r) - kernel(x, known).mean(1)
    gradient += LAMBDA * np.asarray(ratio(jnp.asarray(x), known, auxiliary))
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_the_ratio_in_float32_and_against_numpys_solver():
    known, auxiliary = (np.asarray(a, "f8") for a in drawn(jnp.float32))

    def kernel(a, b):
        return np.exp(-((a[:, None] - b) ** 2).sum(-1) / (2 * WIDTH**2))

    n, m = len(auxiliary), len(known)
    alpha = np.linalg.solve(
        kernel(auxiliary, auxiliary) / n + LAMBDA * np.eye(n),
        -kernel(auxiliary, known).sum(1) / (n * m * LAMBDA),
    )
    expected = kernel(known, auxiliary) @ alpha + kernel(known, known).mean(1) / LAMBDA
    known32, auxiliary32 = drawn(jnp.float32)
    found = jax.jit(ratio)(known32, known32, auxiliary32)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_ratio_is_high_where_known_samples_are():
    known, auxiliary = drawn(jnp.float32)
    where = jnp.array([[0.0, 0.0, 0.0], [2.5, 2.5, 2.5]])
    near, far = ratio(where, known, auxiliary)
    assert near > 2 * jnp.abs(far)


def test_a_density_ratio_needs_width_and_regularization():
    known, auxiliary = drawn(jnp.float32)
    with pytest.raises(ValueError, match="regularization must be above 0, got 0"):
        kulsif_fit(known, auxiliary, 1.0, 0.0)
    with pytest.raises(ValueError, match="width must be above 0, got -1"):
        kulsif_ratio(known, known, auxiliary, auxiliary[:, 0], -1.0, 0.1)
