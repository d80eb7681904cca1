"""Diffusion losses: closed forms of normal data, laws, hard inputs and refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.losses.diffusion import (
    boot_bootstrap_loss,
    boot_boundary_loss,
    boot_target,
    cfg_signal,
    denoising_loss,
    diffuse,
    signal_step_coef,
    to_signal,
    vp_schedule,
)

SCHEDULES = ["cosine", "linear_beta"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
TIMES = np.array([0.0, 1e-4, 0.1, 0.37, 0.8, 0.99])
MEAN, WIDTH = 0.7, 0.3


def levels(time, schedule):
    """α, σ and λ in float64 NumPy, from the schedules' definitions."""
    time = np.asarray(time, np.float64)
    if schedule == "cosine":
        alpha, sigma = np.cos(np.pi * time / 2), np.sin(np.pi * time / 2)
    else:
        # β rises from 0.1 to 20, and α is exp(−½∫β).
        alpha = np.exp(-0.5 * (0.1 * time + 0.5 * (20 - 0.1) * time**2))
        sigma = np.sqrt(1 - alpha**2)
    with np.errstate(divide="ignore"):
        return alpha, sigma, np.log(sigma / alpha)


def images(seed, shape=(6, 2, 2, 1)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def of_normal_data(noisy, time, schedule="cosine"):
    """Return E[x_0 | x_t] of data from N(0.7, 0.3²), elementwise."""
    level = vp_schedule(time, schedule)
    shape = (-1,) + (1,) * (noisy.ndim - 1)
    alpha, sigma = level.alpha.reshape(shape), level.sigma.reshape(shape)
    gain = alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)
    return MEAN + gain * (noisy - alpha * MEAN)


def trajectory(noise, time, first, schedule="cosine"):
    """Return the exact signal at ``time`` of the flow that holds ``noise`` at first."""
    (alpha, sigma, _), (alpha_0, sigma_0, _) = (
        levels(t, schedule) for t in (time, first)
    )
    spread, spread_0 = (
        np.sqrt((a * WIDTH) ** 2 + s**2)
        for a, s in ((alpha, sigma), (alpha_0, sigma_0))
    )
    noise = np.asarray(noise, np.float64)
    noisy = alpha * MEAN + spread / spread_0 * (noise - alpha_0 * MEAN)
    return (noisy - sigma * noise) / alpha


@every_schedule
def test_schedules_are_their_definitions(schedule, x64):
    found = vp_schedule(jnp.asarray(TIMES[1:]), schedule)
    for value, expected in zip(found, levels(TIMES[1:], schedule), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12)


@every_schedule
def test_schedules_in_float32_stay_finite_at_both_ends(schedule):
    time = jnp.array([0.0, 1e-6, 0.5, 1.0])
    level = vp_schedule(time, schedule)
    assert level.log_ratio.dtype == jnp.float32
    assert jnp.all(jnp.isfinite(level.log_ratio))
    assert jnp.all(jnp.diff(level.log_ratio) > 0)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-6)
    slopes = jax.vmap(jax.grad(lambda t: vp_schedule(t, schedule).log_ratio))(time[1:3])
    assert jnp.all(jnp.isfinite(slopes))
    assert vp_schedule(time.astype(jnp.bfloat16), schedule).alpha.dtype == jnp.float32


@every_schedule
@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_every_prediction_gives_back_the_signal(schedule, prediction):
    clean, noise = images(0), images(1)
    level = vp_schedule(jnp.asarray(TIMES, jnp.float32), schedule)
    noisy = diffuse(clean, noise, level)
    alpha, sigma = (x.reshape(-1, 1, 1, 1) for x in level[:2])
    outputs = {"x": clean, "eps": noise, "v": alpha * noise - sigma * clean}
    found = to_signal(outputs[prediction], noisy, level, prediction)
    # Noise over a small α loses the digits that the signal has less of than the noise.
    np.testing.assert_allclose(found, clean, rtol=1e-5, atol=3e-4)


def test_guidance_goes_beyond_the_conditional_signal():
    same = cfg_signal(images(0), images(1), 1.0)
    np.testing.assert_allclose(same, images(0), rtol=1e-6)
    found = cfg_signal(jnp.array([3.0]), jnp.array([2.0]), 2.5)
    np.testing.assert_allclose(found, [4.5])


def test_denoising_loss_is_weighted_by_the_bounded_signal_to_noise_ratio():
    time = jnp.array([0.2, 0.4, 0.9])
    signal, clean = images(0, (3, 2, 2, 1)), images(1, (3, 2, 2, 1))
    loss = denoising_loss(signal, clean, vp_schedule(time))
    ratio = np.tan(np.pi * np.asarray(time, np.float64) / 2) ** -2
    assert ratio[0] > 5 > ratio[1] > 1 > ratio[2]
    error = np.asarray((signal - clean) ** 2, np.float64).mean((1, 2, 3))
    np.testing.assert_allclose(loss, error * [5, ratio[1], 1], rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.99), st.floats(0, 0.99), st.sampled_from(SCHEDULES))
def test_a_step_goes_a_share_of_the_way(first, second, schedule):
    time, following = max(first, second), min(first, second)
    c = signal_step_coef(
        *(vp_schedule(jnp.float32(t), schedule).log_ratio for t in (time, following))
    )
    assert 0 <= c <= 1
    assert (c == 0) == (time == following) or time - following < 1e-6


def test_a_short_step_keeps_its_digits():
    a, b = (vp_schedule(jnp.float32(t)).log_ratio for t in (0.5, 0.499))
    expected = -np.expm1(levels(np.float32(0.499), "cosine")[2] - float(a))
    np.testing.assert_allclose(signal_step_coef(a, b), expected, rtol=1e-4)


def test_order_one_is_a_ddim_step(x64):
    """In terms of x_t: x_s = α_s·f + σ_s·(x_t − α_t·f)/σ_t, whatever the noise."""
    noise, signal = images(0).astype(float), images(1).astype(float)
    time, following = jnp.full(6, 0.7), jnp.linspace(0, 0.6, 6)
    found = boot_target(of_normal_data, signal, noise, time, following)
    alpha, sigma, _ = levels(0.7, "cosine")
    noisy = alpha * signal + sigma * noise
    f = of_normal_data(noisy, time)
    alpha_s, sigma_s, _ = (x.reshape(-1, 1, 1, 1) for x in levels(following, "cosine"))
    moved = alpha_s * f + sigma_s * (noisy - alpha * f) / sigma
    np.testing.assert_allclose(found, (moved - sigma_s * noise) / alpha_s, rtol=1e-10)


@every_schedule
@pytest.mark.parametrize("order", [1, 2])
def test_a_step_s_error_falls_by_its_order(schedule, order, x64):
    """Against the exact flow of normal data: δ halved, the error is 2^(order + 1)th."""
    noise = images(0).astype(float)
    teacher = partial(of_normal_data, schedule=schedule)
    start = jnp.asarray(trajectory(noise, 0.5, 0.99, schedule))

    def error(delta):
        following = jnp.full(6, 0.5 - delta)
        found = boot_target(
            teacher,
            start,
            noise,
            jnp.full(6, 0.5),
            following,
            schedule=schedule,
            order=order,
        )
        return np.abs(found - trajectory(noise, 0.5 - delta, 0.99, schedule)).max()

    ratio = error(0.01) / error(0.005)
    np.testing.assert_allclose(ratio, 2 ** (order + 1), rtol=0.1)


@pytest.mark.parametrize("weighting", ["none", "inv_delta2", "inv_c2"])
def test_bootstrap_loss_against_numpy(weighting, x64):
    noise, time = images(2).astype(float), jnp.linspace(0.1, 0.9, 6)

    def student(noise, time):
        return 0.5 * noise + time.reshape(-1, 1, 1, 1)

    loss = boot_bootstrap_loss(
        student, of_normal_data, noise, time, 0.05, weighting=weighting
    )
    (alpha, sigma, lam), (_, _, lam_s) = (
        [x.reshape(-1, 1, 1, 1) for x in levels(t, "cosine")]
        for t in (time, time - 0.05)
    )
    eps = np.asarray(noise)
    y = 0.5 * eps + np.asarray(time).reshape(-1, 1, 1, 1)
    gain = alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)
    f = MEAN + gain * (alpha * y + sigma * eps - alpha * MEAN)
    c = 1 - np.exp(lam_s - lam)
    error = np.mean((y - 0.05 - (y + c * (f - y))) ** 2, axis=(1, 2, 3))
    factor = {"none": 1, "inv_delta2": 0.05**-2, "inv_c2": c.ravel() ** -2}[weighting]
    np.testing.assert_allclose(loss, factor * error, rtol=1e-9)
    jitted = jax.jit(
        lambda n, t: boot_bootstrap_loss(
            student, of_normal_data, n, t, 0.05, weighting=weighting
        )
    )
    np.testing.assert_allclose(jitted(noise, time), loss, rtol=1e-9)


def test_gradient_flows_through_the_earlier_time_alone():
    noise, time = images(0), jnp.full(6, 0.5)

    def loss(late, early, teacher):
        def student(noise, t):
            return jnp.where(t[0] > 0.45, late, early) * noise

        def denoise(noisy, t):
            return teacher * noisy

        start = boot_boundary_loss(student, denoise, noise, jnp.full(6, 0.2))
        return boot_bootstrap_loss(
            student, denoise, noise, time, 0.1
        ).sum(), start.sum()

    late, early, teacher = jax.grad(lambda *a: loss(*a)[0], (0, 1, 2))(0.5, 0.2, 0.9)
    assert late == 0
    assert teacher == 0
    assert early != 0
    # Below the target, the early student must rise: steps are towards the data.
    _, early, teacher = jax.grad(lambda *a: loss(*a)[1], (0, 1, 2))(0.5, 0.2, 0.9)
    assert early < 0
    assert teacher == 0


def test_the_exact_trajectory_has_almost_no_loss():
    """A student that is the flow itself is at the minimum, up to the step's error."""
    noise, time = images(3), jnp.linspace(0.1, 0.95, 6)

    def flow(noise, time, shift=0.0):
        shape = (-1, 1, 1, 1)
        level = vp_schedule(time)
        alpha, sigma = level.alpha.reshape(shape), level.sigma.reshape(shape)
        spread = jnp.sqrt((alpha * WIDTH) ** 2 + sigma**2)
        noisy = alpha * MEAN + spread * noise
        return (noisy - sigma * noise) / alpha + shift * time.reshape(shape)

    def loss(student, order):
        return boot_bootstrap_loss(
            student, of_normal_data, noise, time, 0.02, order=order
        ).mean()

    exact = loss(flow, 2)
    assert exact < 0.05 * loss(flow, 1)
    assert loss(flow, 1) < 0.05 * loss(partial(flow, shift=1.0), 1)
    at_end = boot_boundary_loss(flow, of_normal_data, noise, jnp.full(6, 0.99))
    assert at_end.max() < 1e-3


def test_bfloat16_and_huge_values_are_taken_in_float32():
    noise, time = images(0), jnp.full(6, 0.5)

    def low(noisy, t):
        return (0.1 * noisy).astype(jnp.bfloat16)

    loss = boot_bootstrap_loss(low, low, noise.astype(jnp.bfloat16), time, 0.1)
    assert loss.dtype == jnp.float32
    assert loss.shape == (6,)
    assert jnp.all(jnp.isfinite(loss))
    value, gradient = jax.value_and_grad(
        lambda x: boot_bootstrap_loss(
            lambda n, t: x, low, 1e4 * noise, time, 0.1
        ).mean()
    )(1e4 * noise)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


def test_one_example_and_vectors():
    noise, time = images(0, (1, 3)), jnp.array([0.5])
    loss = boot_bootstrap_loss(of_normal_data, of_normal_data, noise, time, 0.1)
    assert loss.shape == (1,)
    assert jnp.isfinite(loss[0])


NOISE, TIME = images(0), jnp.full(6, 0.5)
boot_loss = partial(boot_bootstrap_loss, of_normal_data, of_normal_data, NOISE)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vp_schedule(jnp.array([0.5, 1.2])), r"time must be in \[0, 1\]"),
        (lambda: vp_schedule(TIME, "cosin"), "did you mean 'cosine'"),
        (lambda: to_signal(NOISE, NOISE, vp_schedule(TIME), "y"), "Valid: x, eps, v"),
        (
            lambda: to_signal(NOISE[:3], NOISE, vp_schedule(TIME), "x"),
            r"\(3, 2, 2, 1\)",
        ),
        (lambda: signal_step_coef(jnp.float32(0), jnp.float32(1)), "noise to data"),
        (lambda: boot_loss(TIME, 0.0), "delta must be above 0"),
        (lambda: boot_loss(TIME, 0.6), r"time must be at least delta \(0.6\)"),
        (lambda: boot_loss(TIME, 0.1, weighting="inv_c"), "did you mean 'inv_c2'"),
        (lambda: boot_loss(TIME, 0.1, order=3), "order must be 1"),
        (
            lambda: denoising_loss(NOISE, NOISE[:2], vp_schedule(TIME)),
            r"\(2, 2, 2, 1\)",
        ),
        (lambda: denoising_loss(NOISE, NOISE, vp_schedule(TIME), 0.5), "max_weight"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
