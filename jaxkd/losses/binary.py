"""Losses that compare each class's logit alone, through a sigmoid.

A softmax forgets what is common to all logits of an example; these do not. They sum
over the classes, compute in float32, and return one value an example. A class at −∞ in
both networks counts 0.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive
from jaxkd.kernels.linear_distill.divergences import times
from jaxkd.losses.basics import as_float, check_positive, check_same_shape, frozen


@checked(temperature=positive)
def binary_kl_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    temperature: float = 2.0,
    clip_eps: float | None = None,
) -> Float[Array, "*batch"]:
    """Binary divergence of every class: T²·Σ_k KL(σ(z_t/T) ‖ σ(z_s/T)).

    Yang et al. 2024, arXiv:2411.08937, the loss that `binary_kl_norm_loss` normalises.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        temperature: T > 0.
        clip_eps: ε; clips the probabilities to [ε, 1 − ε], without gradient outside,
            as the authors' code does with 1e-8. None keeps the gradient of logits
            that are far away.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, T is not above 0, or ε is not in (0, 1/2).
    """
    _check(student_logits, teacher_logits, temperature, clip_eps)
    student, teacher = _existing(student_logits, teacher_logits)
    student = _clip(student / temperature, clip_eps)
    teacher = _clip(teacher / temperature, clip_eps)
    kl = sum(
        times(jax.nn.sigmoid(t), jax.nn.log_sigmoid(t) - jax.nn.log_sigmoid(s))
        for s, t in ((student, teacher), (-student, -teacher))
    )
    return temperature**2 * jnp.sum(kl, axis=-1)


@checked(temperature=positive)
def binary_kl_norm_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    temperature: float = 2.0,
    clip_eps: float | None = None,
) -> Float[Array, "*batch"]:
    """Normalised binary divergence: T²·Σ_k KL([½, ½] ‖ [σ(d_k), 1 − σ(d_k)]).

    Yang et al. 2024, arXiv:2411.08937, with d = (z_s − z_t)/T; the divergence is
    log cosh(d/2). It is 0 only where the logits are equal; its gradient T·(σ(d) − ½)
    is that of a squared error nearby and of an absolute one far away, so all of the
    teacher's outputs are learnt at one speed.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        temperature: T > 0.
        clip_eps: ε; clips σ(d) to [ε, 1 − ε], without gradient outside, as the authors'
            code does with 1e-8. None keeps the gradient of logits that are far away.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, T is not above 0, or ε is not in (0, 1/2).
    """
    _check(student_logits, teacher_logits, temperature, clip_eps)
    student, teacher = _existing(student_logits, teacher_logits)
    d = (student - teacher) / temperature
    x = jnp.abs(_clip(d, clip_eps)) / 2
    log_cosh = x + jnp.log1p(jnp.expm1(-2 * x) / 2)
    return temperature**2 * jnp.sum(log_cosh, axis=-1)


def _existing(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Return both logits, the teacher's frozen, alike where both are −∞."""
    student, teacher = as_float(student), frozen(teacher)
    absent = jnp.isneginf(student) & jnp.isneginf(teacher)
    return jnp.where(absent, 0, student), jnp.where(absent, 0, teacher)


def _clip(logits: Array, clip_eps: float | None) -> Array:
    """Return the logits whose sigmoid is clipped to [ε, 1 − ε]."""
    if clip_eps is None:
        return logits
    bound = math.log1p(-clip_eps) - math.log(clip_eps)
    return jnp.clip(logits, -bound, bound)


def _check(student, teacher, temperature: float, clip_eps: float | None) -> None:
    check_same_shape(student, teacher, "logits")
    check_positive("temperature", temperature)
    if clip_eps is not None and not 0 < clip_eps < 0.5:
        raise ValueError(f"clip_eps must be in (0, 0.5) or None, got {clip_eps}")
