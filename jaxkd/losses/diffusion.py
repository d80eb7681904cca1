"""What diffusion models, and students that sample in one step, are trained by.

The process is variance-preserving: x_t = α_t·x_0 + σ_t·ε with α² + σ² = 1, from data at
time 0 to noise at time 1. A teacher's estimate of x_0 is a *signal function*, ``(noisy,
time) -> signal``; one step of its deterministic sampler (DDIM) moves the signal
y_t = (x_t − σ_t·ε) / α_t from time t to s < t by y_s = y_t + c·(signal − y_t), in which
the noise ε it started from cancels.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import EPS, as_float, check_same_shape, frozen

Schedule = Literal["cosine", "linear_beta"]
Prediction = Literal["x", "eps", "v"]
Weighting = Literal["inv_delta2", "inv_c2", "none"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
SignalFunction = Callable[[Array, Array], Array]
"""``(noisy or noise (batch, ...), time (batch,)) -> signal (batch, ...)``."""

BETA_MIN, BETA_MAX = 0.1, 20.0
"""Ends of the linear β(t) (Song et al. 2020, arXiv:2011.13456, Appendix C)."""


class NoiseLevel(NamedTuple):
    """How much signal and noise there is at a time.

    Attributes:
        alpha: α_t, the signal's factor.
        sigma: σ_t, the noise's factor.
        log_ratio: λ_t = log(σ_t / α_t), minus half of the log signal-to-noise ratio.
    """

    alpha: Array
    sigma: Array
    log_ratio: Array  # of α and σ of at least 1e-12, so that it is finite at 0 and 1


@checked()
def vp_schedule(
    time: Float[Array, "*batch"], schedule: Schedule = "cosine"
) -> NoiseLevel:
    """Return the noise level of a variance-preserving process.

    ``cosine``: α = cos(πt/2) (Nichol and Dhariwal 2021, arXiv:2102.09672, without their
    offset). ``linear_beta``: log α = −t²(β₁ − β₀)/4 − tβ₀/2 (Song et al. 2020,
    arXiv:2011.13456, Eq. 33).

    Args:
        time: t in [0, 1].
        schedule: by name.

    Raises:
        ValueError: an unknown schedule, or a time outside [0, 1].
    """
    time = as_float(time)
    if not isinstance(time, Tracer) and not np.all(
        (np.asarray(time) >= 0) & (np.asarray(time) <= 1)
    ):
        raise ValueError(f"time must be in [0, 1], got {time}")
    if schedule == "cosine":
        angle = 0.5 * jnp.pi * time
        alpha, sigma = jnp.maximum(jnp.cos(angle), 0), jnp.sin(angle)
    elif schedule == "linear_beta":
        log_alpha = -0.25 * time**2 * (BETA_MAX - BETA_MIN) - 0.5 * time * BETA_MIN
        alpha = jnp.exp(log_alpha)
        sigma = jnp.sqrt(-jnp.expm1(2 * log_alpha))
    else:
        raise ValueError(unknown_name("schedule", schedule, SCHEDULES))
    log_alpha, log_sigma = (jnp.log(jnp.maximum(x, EPS)) for x in (alpha, sigma))
    return NoiseLevel(alpha, sigma, log_sigma - log_alpha)


def _over(values: Array, like: Array) -> Array:
    """Return one value an example with as many axes as the examples have."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


@checked()
def diffuse(
    signal: Float[Array, "batch *shape"],
    noise: Float[Array, "batch *shape"],
    level: NoiseLevel,
) -> Float[Array, "batch *shape"]:
    """Return α·signal + σ·noise.

    Args:
        signal: clean images, or a trajectory's signal y_t.
        noise: ε.
        level: of each example, (batch,).
    """
    signal, noise = as_float(signal), as_float(noise)
    return _over(level.alpha, signal) * signal + _over(level.sigma, noise) * noise


@checked()
def to_signal(
    output: Float[Array, "batch *shape"],
    noisy: Float[Array, "batch *shape"],
    level: NoiseLevel,
    prediction: Prediction,
) -> Float[Array, "batch *shape"]:
    """Return the estimate of x_0 that a network's output stands for.

    Args:
        output: the network's.
        noisy: x_t, its input.
        level: of each example, (batch,).
        prediction: what the output is: ``"x"`` the signal itself; ``"eps"`` the noise,
            (x_t − σ·output)/α; ``"v"`` the velocity α·ε − σ·x_0, α·x_t − σ·output
            (Salimans and Ho 2022, arXiv:2202.00512, Appendix D).

    Raises:
        ValueError: an unknown prediction, or shapes that differ.
    """
    if jnp.shape(output) != jnp.shape(noisy):
        raise ValueError(
            f"output has shape {jnp.shape(output)} but noisy has {jnp.shape(noisy)}: "
            "a diffusion model returns one value for each of its image's"
        )
    output, noisy = as_float(output), as_float(noisy)
    alpha, sigma = _over(level.alpha, noisy), _over(level.sigma, noisy)
    if prediction == "x":
        return output
    if prediction == "eps":
        return (noisy - sigma * output) / jnp.maximum(alpha, EPS)
    if prediction == "v":
        return alpha * noisy - sigma * output
    raise ValueError(unknown_name("prediction", prediction, PREDICTIONS))


@checked()
def cfg_signal(
    conditional: Float[Array, "batch *shape"],
    unconditional: Float[Array, "batch *shape"],
    weight: float | Float[Array, ""],
) -> Float[Array, "batch *shape"]:
    """Return the classifier-free guided signal, f(∅) + w·(f(c) − f(∅)).

    Ho and Salimans 2022, arXiv:2207.12598, Eq. 6, whose w is this one less 1.

    Args:
        conditional: f(c), the signal for the condition.
        unconditional: f(∅), that for no condition (or for a negative prompt).
        weight: w; 1 is no guidance.
    """
    conditional, unconditional = as_float(conditional), as_float(unconditional)
    return unconditional + weight * (conditional - unconditional)


@checked()
def denoising_loss(
    signal: Float[Array, "batch *shape"],
    clean: Float[Array, "batch *shape"],
    level: NoiseLevel,
    max_weight: float = 5.0,
) -> Float[Array, "batch"]:
    """Squared error of the denoised signal, weighted by the signal-to-noise ratio.

    The weight is α²/σ² held between 1 (Salimans and Ho 2022, arXiv:2202.00512, Section
    4) and 5 (Hang et al. 2023, arXiv:2303.09556).

    Args:
        signal: the estimate of x_0, from `to_signal`.
        clean: x_0.
        level: of each example, (batch,).
        max_weight: the upper bound, at least 1.

    Returns:
        The mean over each example's values.
    """
    check_same_shape(signal, clean, "signal")
    if max_weight < 1:
        raise ValueError(f"max_weight must be at least 1, got {max_weight}")
    weight = jnp.clip(jnp.exp(-2 * level.log_ratio), 1, max_weight)
    return weight * _squared_error(signal, clean)


@checked()
def signal_step_coef(
    log_ratio: Float[Array, "*batch"], next_log_ratio: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Return c = 1 − exp(λ_s − λ_t), the share of the way to the teacher's signal.

    Args:
        log_ratio: λ_t.
        next_log_ratio: λ_s of the earlier time s ≤ t.

    Returns:
        c in [0, 1].

    Raises:
        ValueError: s is after t.
    """
    difference = as_float(next_log_ratio) - as_float(log_ratio)
    if not isinstance(difference, Tracer) and np.any(np.asarray(difference) > 0):
        raise ValueError(
            "next_log_ratio is above log_ratio: a sampler goes from noise to data, so "
            "the next time must not be after the time"
        )
    return -jnp.expm1(difference)


@checked()
def boot_target(
    teacher: SignalFunction,
    signal: Float[Array, "batch *shape"],
    noise: Float[Array, "batch *shape"],
    time: Float[Array, "batch"],
    next_time: Float[Array, "batch"],
    *,
    schedule: Schedule = "cosine",
    order: int = 1,
) -> Float[Array, "batch *shape"]:
    """Return the signal at an earlier time: one step of the teacher's sampler.

    Gu et al. 2023, arXiv:2306.05544, Section 3.2, with the exact coefficient of a DDIM
    step where the paper has its first order.

    Args:
        teacher: the signal function.
        signal: y_t on the trajectory of ``noise``.
        noise: ε, where the trajectory starts.
        time: t.
        next_time: s < t.
        schedule: of the noise.
        order: 1 for one call of the teacher (DDIM), 2 for two (Heun).

    Returns:
        y_s, without gradient.

    Raises:
        ValueError: an order other than 1 and 2.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (DDIM) or 2 (Heun), got {order}")
    signal, noise = as_float(signal), as_float(noise)
    level, next_level = vp_schedule(time, schedule), vp_schedule(next_time, schedule)
    coef = _over(signal_step_coef(level.log_ratio, next_level.log_ratio), signal)
    direction = as_float(teacher(diffuse(signal, noise, level), time))
    if order == 2:
        reached = signal + coef * (direction - signal)
        after = as_float(teacher(diffuse(reached, noise, next_level), next_time))
        direction = 0.5 * (direction + after)
    return jax.lax.stop_gradient(signal + coef * (direction - signal))


@checked(delta=positive)
def boot_bootstrap_loss(
    student: SignalFunction,
    teacher: SignalFunction,
    noise: Float[Array, "batch *shape"],
    time: Float[Array, "batch"],
    delta: float,
    *,
    schedule: Schedule = "cosine",
    weighting: Weighting = "inv_delta2",
    order: int = 1,
) -> Float[Array, "batch"]:
    """BOOT's bootstrapping loss: the student at t − δ against one step from its t.

    Gu et al. 2023, arXiv:2306.05544, Section 3.2. The gradient flows through the
    student at t − δ only.

    Args:
        student: ``(noise, time) ->`` the signal at that time.
        teacher: the signal function.
        noise: ε, the student's input at every time.
        time: t, at least δ.
        delta: δ > 0, the step.
        schedule: of the noise.
        weighting: ``"inv_delta2"`` divides by δ², ``"inv_c2"`` by the step's
            coefficient squared, ``"none"`` by nothing.
        order: of the teacher's step, 1 or 2.

    Returns:
        The mean over each example's values.

    Raises:
        ValueError: δ is not above 0, a time below δ, or an unknown weighting or order.
    """
    if not isinstance(time, Tracer) and np.any(np.asarray(time) < delta):
        raise ValueError(f"time must be at least delta ({delta}), got {time}")
    next_time = time - delta
    target = boot_target(
        teacher,
        student(noise, time),
        noise,
        time,
        next_time,
        schedule=schedule,
        order=order,
    )
    error = _squared_error(student(noise, next_time), target)
    if weighting == "none":
        return error
    if weighting == "inv_delta2":
        return error / delta**2
    if weighting == "inv_c2":
        levels = (vp_schedule(t, schedule) for t in (time, next_time))
        return error / signal_step_coef(*(level.log_ratio for level in levels)) ** 2
    raise ValueError(unknown_name("weighting", weighting, WEIGHTINGS))


@checked()
def boot_boundary_loss(
    student: SignalFunction,
    teacher: SignalFunction,
    noise: Float[Array, "batch *shape"],
    time: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    """BOOT's boundary loss: where the trajectory starts, the student is the teacher.

    Gu et al. 2023, arXiv:2306.05544, Section 3.2.

    Args:
        student: ``(noise, time) ->`` the signal.
        teacher: the signal function.
        noise: ε, which is x_t at the last time.
        time: the last time for each example.

    Returns:
        The mean over each example's values.
    """
    target = frozen(teacher(as_float(noise), time))
    return _squared_error(student(noise, time), target)


def _squared_error(
    output: Float[Array, "batch *shape"], target: Float[Array, "batch *shape"]
) -> Float[Array, "batch"]:
    error = jnp.square(as_float(output) - as_float(target))
    return error.mean(tuple(range(1, error.ndim)))
