"""How good generated samples are: a teacher's sampler, and distances between sets."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxkd.arguments import checked, count
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import EPS, as_float
from jaxkd.losses.diffusion import (
    Schedule,
    SignalFunction,
    diffuse,
    signal_step_coef,
    vp_schedule,
)
from jaxkd.network import Network
from jaxkd.types import Variables


@checked()
def ddim_sample(
    denoise: SignalFunction,
    noise: Float[Array, "batch *shape"],
    times: Sequence[float] | Float[np.ndarray, "steps_and_one"],
    *,
    schedule: Schedule = "cosine",
) -> Float[Array, "batch *shape"]:
    """Return the samples of a diffusion model's deterministic sampler (DDIM).

    Song et al. 2020, arXiv:2010.02502, Eq. 12 with σ = 0.

    Args:
        denoise: the model, from `jaxkd.papers.boot.denoiser`.
        noise: where the trajectories start.
        times: decreasing, from the first time to the samples': N steps and calls of
            the model need N + 1, such as ``np.linspace(0.99, 0, N + 1)``.
        schedule: of the noise.

    Raises:
        ValueError: fewer than two times, or times that do not decrease.
    """
    return ddim_trajectory(denoise, noise, times, schedule=schedule)[-1]


@checked()
def ddim_trajectory(
    denoise: SignalFunction,
    noise: Float[Array, "batch *shape"],
    times: Sequence[float] | Float[np.ndarray, "steps_and_one"],
    *,
    schedule: Schedule = "cosine",
) -> Float[Array, "steps batch *shape"]:
    """Return the signals y_t = (x_t − σ_t·ε)/α_t on the way of `ddim_sample`.

    They are what a student of `jaxkd.papers.boot.boot` is to answer at the same times.

    Args:
        denoise: as in `ddim_sample`.
        noise: likewise.
        times: likewise.
        schedule: likewise.

    Returns:
        The signal after each step, at ``times[1:]``.

    Raises:
        ValueError: as `ddim_sample`.
    """
    steps = np.asarray(times, np.float64)
    if len(steps) < 2 or np.any(np.diff(steps) >= 0):
        raise ValueError(f"times must be two or more, and decrease, got {times}")
    noise = as_float(noise)
    start = vp_schedule(jnp.asarray(steps[0], noise.dtype), schedule)
    # x_T is the noise: of the signal there is as much as α and σ leave room for.
    signal = noise * (1 - start.sigma) / jnp.maximum(start.alpha, EPS)

    def step(signal: Array, pair: Array) -> tuple[Array, Array]:
        level, following = (vp_schedule(time, schedule) for time in pair)
        coef = signal_step_coef(level.log_ratio, following.log_ratio)
        noisy = diffuse(signal, noise, level)
        estimate = denoise(noisy, jnp.full(noise.shape[:1], pair[0], noise.dtype))
        signal = signal + coef * (as_float(estimate) - signal)
        return signal, signal

    pairs = jnp.asarray(np.stack([steps[:-1], steps[1:]], axis=1), noise.dtype)
    return jax.lax.scan(step, signal, pairs)[1]


@checked(projections=count)
def sliced_wasserstein(
    a: Float[Array, "examples *shape"],
    b: Float[Array, "examples *shape"],
    key: PRNGKeyArray,
    projections: int = 256,
) -> Float[Array, ""]:
    """Return the sliced 2-Wasserstein distance between two sets of as many samples.

    The root of the mean, over random directions, of the squared distance between the
    sorted projections (Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters
    of Measures", J. Math. Imaging Vis. 51).

    Args:
        a: samples.
        b: as many samples.
        key: of the directions.
        projections: how many directions.

    Raises:
        ValueError: shapes that differ.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"a has shape {a.shape} but b has {b.shape}: give as many samples of both"
        )
    a, b = (as_float(x).reshape(len(x), -1) for x in (a, b))
    direction = jax.random.normal(key, (a.shape[1], projections), a.dtype)
    direction = direction / jnp.linalg.norm(direction, axis=0)
    difference = jnp.sort(a @ direction, axis=0) - jnp.sort(b @ direction, axis=0)
    return jnp.sqrt(jnp.mean(difference**2))


@checked()
def rbf_mmd(
    a: Float[Array, "examples *shape"],
    b: Float[Array, "others *shape"],
    bandwidth: float | None = None,
) -> Float[Array, ""]:
    """Return the squared maximum mean discrepancy, with a Gaussian kernel, unbiased.

    Gretton et al. 2012, "A Kernel Two-Sample Test", JMLR 13, Eq. 3. It may be below 0.

    Args:
        a: samples, at least two.
        b: samples of the same shape, at least two.
        bandwidth: the kernel's standard deviation; None for the median distance between
            samples of both sets.

    Raises:
        ValueError: shapes that differ, or fewer than two samples.
    """
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"a has shape {a.shape} and b has {b.shape}: give two or more samples of "
            "one shape"
        )
    a, b = (as_float(x).reshape(len(x), -1) for x in (a, b))
    both = jnp.concatenate([a, b])
    norm = jnp.sum(both**2, axis=1)
    square = norm[:, None] + norm - 2 * jnp.matmul(both, both.T, precision="highest")
    square = jnp.maximum(square, 0)
    n, m = len(a), len(b)
    if bandwidth is None:
        scale = jnp.median(square[jnp.triu_indices(n + m, 1)])
    else:
        scale = bandwidth**2
    kernel = jnp.exp(-0.5 * square / jnp.where(scale == 0, 1, scale))

    def within(part: Array, count: int) -> Array:
        return (part.sum() - count) / (count * (count - 1))

    return (
        within(kernel[:n, :n], n)
        + within(kernel[n:, n:], m)
        - 2 * kernel[:n, n:].mean()
    )


@checked()
def frechet_distance(
    a: Float[np.ndarray, "examples features"],
    b: Float[np.ndarray, "others features"],
) -> float:
    """Return the Fréchet distance between normal distributions fitted to two sets.

    ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½). With the features of Inception-v3 it is
    FID (Heusel et al. 2017, arXiv:1706.08500, Eq. 6); numbers of other features compare
    only among themselves, and of few samples only at equal numbers of them.

    Args:
        a: features of samples, at least two; computed in float64.
        b: features of other samples, such as real ones.

    Raises:
        ValueError: features that differ in number, or fewer than two samples.
    """
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"a has shape {a.shape} and b has {b.shape}: give two or more samples of "
            "as many features"
        )
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # (Σ_a Σ_b)^½ has the trace of (Σ_a^½ Σ_b Σ_a^½)^½, which is symmetric.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    gap = np.sum((a.mean(0) - b.mean(0)) ** 2)
    return float(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


@checked(batch_size=count)
def feature_extractor(
    network: Network, variables: Variables, tap: str = "pooled", batch_size: int = 500
) -> Callable[[Float[np.ndarray, "examples *shape"]], np.ndarray]:
    """Return ``images -> features`` (examples, features), for `frechet_distance`.

    Args:
        network: a classifier.
        variables: the classifier's.
        tap: the feature, which is flattened.
        batch_size: images in one forward pass.

    Raises:
        ValueError: the network has no such tap.
    """
    if tap not in network.taps:
        raise ValueError(unknown_name("tap", tap, network.taps))

    @jax.jit
    def forward(images: Array) -> Array:
        outputs, _ = network.apply(variables, images, taps=(tap,))
        return outputs.features[tap].reshape(len(images), -1)

    def features(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), batch_size)
        parts = (forward(jnp.asarray(images[i : i + batch_size])) for i in starts)
        return np.concatenate([np.asarray(part) for part in parts])

    return features
