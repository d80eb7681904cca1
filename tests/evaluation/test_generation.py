"""Samplers and distances between samples: closed forms, SciPy, laws, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from jaxkd import models
from jaxkd.evaluation.generation import (
    ddim_sample,
    ddim_trajectory,
    feature_extractor,
    frechet_distance,
    rbf_mmd,
    sliced_wasserstein,
)
from jaxkd.losses.diffusion import vp_schedule
from jaxkd.reporting.images import GAP, plot_images

MEAN, WIDTH, LAST = -0.4, 0.2, 0.97


def of_normal_data(noisy, time, schedule):
    """Return E[x_0 | x_t] of data from N(-0.4, 0.2²)."""
    level = vp_schedule(time, schedule)
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    gain = alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)
    return MEAN + gain * (noisy - alpha * MEAN)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("schedule", ["cosine", "linear_beta"])
def test_ddim_converges_to_the_flow_of_normal_data(schedule, x64, rng):
    noise = jnp.asarray(rng.normal(size=(5, 3)))
    level = vp_schedule(jnp.asarray(LAST, float), schedule)
    # The flow scales distances from the mean as the standard deviation changes.
    spread = np.sqrt((level.alpha * WIDTH) ** 2 + level.sigma**2)
    exact = MEAN + WIDTH / spread * (noise - level.alpha * MEAN)
    denoise = partial(of_normal_data, schedule=schedule)
    errors = []
    for steps in (50, 100):
        times = np.linspace(LAST, 0, steps + 1)
        sample = ddim_sample(denoise, noise, times, schedule=schedule)
        errors.append(np.abs(sample - exact).max())
    assert errors[1] < 0.02
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.15)


def test_one_step_is_the_denoised_noise_and_the_last_of_its_trajectory(rng):
    noise = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    denoise = partial(of_normal_data, schedule="cosine")
    found = ddim_sample(denoise, noise, (LAST, 0.0))
    np.testing.assert_allclose(found, denoise(noise, jnp.full(5, LAST)), rtol=1e-5)
    # What the first call gets is the noise itself.
    echo = ddim_sample(lambda noisy, time: noisy, noise, (0.7, 0.0))
    np.testing.assert_allclose(echo, noise, rtol=1e-5)
    way = ddim_trajectory(denoise, noise, np.linspace(LAST, 0, 5))
    assert way.shape == (4, 5, 3)
    whole = ddim_sample(denoise, noise, np.linspace(LAST, 0, 5))
    np.testing.assert_allclose(way[-1], whole)
    assert np.abs(way[0] - way[-1]).max() > 1e-3


@pytest.mark.parametrize("times", [(0.5,), (0.0, 0.5), (0.5, 0.5, 0.0)])
def test_times_that_do_not_decrease_are_refused(times):
    with pytest.raises(ValueError, match="decrease"):
        ddim_sample(lambda x, t: x, jnp.zeros((2, 3)), times)


def test_frechet_distance_is_scipy_s_and_that_of_shifted_normals(rng):
    a = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    b = rng.normal(size=(200, 6)) * [1, 2, 3, 0.5, 1, 0.1] + 1
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    gap = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = gap + np.trace(cov_a + cov_b - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-6)
    np.testing.assert_allclose(
        frechet_distance(a, b), frechet_distance(b, a), rtol=1e-6
    )
    np.testing.assert_allclose(frechet_distance(a, a), 0, atol=1e-9)
    np.testing.assert_allclose(frechet_distance(a, a + 2), 24, rtol=1e-6)
    # Scaled normals: the standard deviations' difference, squared, and the mean's.
    moved = frechet_distance(a, 3 * a)
    expected = 4 * np.trace(cov_a) + 4 * np.sum(a.mean(0) ** 2)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    assert frechet_distance(a[:3], b) > 0


def test_sliced_wasserstein_of_shifts_and_collapse(rng):
    a = jnp.asarray(rng.normal(size=(400, 2, 3)), jnp.float32)
    distance = partial(sliced_wasserstein, key=jax.random.key(0), projections=2000)
    assert distance(a, a[::-1]) == 0
    # A shift by s moves projections by s·cos: the root mean square is |s| / √dim.
    np.testing.assert_allclose(distance(a, a + 1), 1, rtol=0.05)
    collapsed = jnp.zeros_like(a)
    np.testing.assert_allclose(distance(a, collapsed), np.std(a), rtol=0.05)


def test_mmd_against_numpy_and_its_zero(rng):
    a, b = rng.normal(size=(30, 2)), rng.normal(size=(20, 2)) + 1
    both = np.concatenate([a, b])
    distance = np.linalg.norm(both[:, None] - both, axis=-1)

    def expected(width):
        kernel = np.exp(-(distance**2) / (2 * width**2))
        np.fill_diagonal(kernel, 0)
        within = kernel[:30, :30].sum() / (30 * 29) + kernel[30:, 30:].sum() / (20 * 19)
        return within - 2 * kernel[:30, 30:].mean()

    x, y = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    mmd = jax.jit(rbf_mmd, static_argnums=2)
    np.testing.assert_allclose(mmd(x, y, 0.7), expected(0.7), rtol=1e-4)
    median = np.median(distance[np.triu_indices(50, 1)])
    np.testing.assert_allclose(mmd(x, y), expected(median), rtol=1e-4)
    other = jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)
    assert abs(mmd(x, other)) < 0.05 < mmd(x, y)
    assert jnp.isfinite(mmd(jnp.zeros((30, 2)), jnp.zeros((20, 2))))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: sliced_wasserstein(a, a[:2], jax.random.key(0)), "as many samples"),
        (lambda a: rbf_mmd(a, a[:1]), "two or more"),
        (lambda a: frechet_distance(a, a[:, :2]), "as many features"),
        (lambda a: frechet_distance(a[:1], a), "two or more"),
    ],
)
def test_sets_that_do_not_compare_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((4, 3)))


def test_features_do_not_depend_on_the_batch_size(rng):
    network = models.mlp(4, (5,), 3)
    variables = network.init(jax.random.key(0))
    images = rng.normal(size=(7, 2, 2, 1)).astype("f4")
    found = feature_extractor(network, variables, batch_size=3)(images)
    assert found.shape == (7, 5)
    whole = feature_extractor(network, variables)(images)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="unknown tap 'pool'"):
        feature_extractor(network, variables, "pool")


def test_a_grid_holds_every_image_at_its_place(tmp_path):
    images = np.full((3, 2, 2, 1), -1.0)
    images[1] = 1.0
    images[2, 0, 1] = 0.0
    path = plot_images(
        {"a": images, "b": -images}, tmp_path / "new" / "grid.png", pixel=4
    )
    with Image.open(path) as picture:
        grid = np.asarray(picture)
    left = grid.shape[1] - 3 * (8 + GAP)
    rows = [grid[GAP + i * (8 + GAP) :][:8, left:] for i in range(2)]
    for sign, row in zip((1, -1), rows, strict=True):
        for j, image in enumerate(images):
            block = row[:, j * (8 + GAP) : j * (8 + GAP) + 8]
            expected = np.round((sign * image.repeat(4, 0).repeat(4, 1) + 1) * 127.5)
            np.testing.assert_array_equal(block, np.broadcast_to(expected, (8, 8, 3)))
    with pytest.raises(ValueError, match="one shape"):
        plot_images({"a": images, "b": images[:2]}, tmp_path / "other.png")
