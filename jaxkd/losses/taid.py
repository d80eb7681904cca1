"""Temporally adaptive interpolated distillation: a target that moves to the teacher.

Shing et al. 2025 (TAID), arXiv:2501.16937. The target is between the student and the
teacher in logit space, at a t that rises from ``t_start`` to 1 at least linearly, and
faster while the loss falls.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, fraction, probability
from jaxkd.kernels.linear_distill.divergences import times
from jaxkd.losses.basics import as_float, check_same_shape, frozen, log_softmax


@flax.struct.dataclass
class TaidState:
    """What is carried from step to step, float32 scalars.

    Attributes:
        t: how far the target is on its way to the teacher, in [0, 1].
        previous: the last loss; infinite before the first.
        momentum: of the loss's relative fall.
    """

    t: Any
    previous: Any
    momentum: Any


@checked(t_start=fraction)
def taid_init(t_start: float = 0.4) -> TaidState:
    """Return the state before the first step.

    Args:
        t_start: in [0, 1); 0.4 for a large gap between the networks, else 0.2.

    Raises:
        ValueError: ``t_start`` outside [0, 1).
    """
    return TaidState(
        jnp.full((), t_start, float), jnp.full((), jnp.inf, float), jnp.zeros(())
    )


@checked()
def taid_target(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    t: float | Float[Array, ""],
) -> Float[Array, "*batch classes"]:
    """Return softmax((1 − t)·z_s + t·z_t), without gradient; Eq. 3.

    A class whose logit is −∞ in either (padding of the vocabulary) gets 0.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        t: in [0, 1].

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    student, teacher = frozen(student_logits), frozen(teacher_logits)
    absent = jnp.isneginf(student) | jnp.isneginf(teacher)
    # 0 times infinity would be NaN.
    mixed = (1 - t) * jnp.where(absent, 0, student) + t * jnp.where(absent, 0, teacher)
    return jnp.exp(log_softmax(jnp.where(absent, -jnp.inf, mixed)))


@checked()
def taid_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    t: float | Float[Array, ""],
) -> Float[Array, "*batch"]:
    """Cross-entropy of the student with the interpolated target, one value a token.

    Its gradient is KL's, softmax(z_s) − target, and its value what the schedule of the
    authors' code watches. At t = 0 the gradient is 0, at t = 1 forward KL's.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        t: in [0, 1].

    Raises:
        ValueError: shapes differ.
    """
    target = taid_target(student_logits, teacher_logits, t)
    return -times(target, log_softmax(as_float(student_logits))).sum(-1)


@checked(
    t_start=probability,
    t_end=probability,
    alpha=probability,
    beta=fraction,
    progress=probability,
)
def taid_update(
    state: TaidState,
    loss: Float[Array, ""],
    progress: float | Float[Array, ""],
    *,
    t_start: float = 0.4,
    t_end: float = 1.0,
    alpha: float = 5e-4,
    beta: float = 0.99,
) -> TaidState:
    """Return the state after a step; Algorithm 1.

    Args:
        state: with the t that the loss was taken at.
        loss: of the step, a mean over all devices' tokens.
        progress: steps done over steps in all, in [0, 1].
        t_start: the first t.
        t_end: the last, in (0, 1].
        alpha: the most that t may leap a step; 0 leaves the linear schedule.
        beta: of the momentum, in [0, 1).

    Raises:
        ValueError: numbers outside their ranges.
    """
    if not t_start <= t_end <= 1 or not 0 <= alpha <= 1 or not 0 <= beta < 1:
        raise ValueError(
            "taid_update needs t_start <= t_end <= 1, alpha in [0, 1] and beta in "
            f"[0, 1), got {t_start}, {t_end}, {alpha} and {beta}"
        )
    loss = frozen(loss)
    first = jnp.isinf(state.previous)
    previous = jnp.where(first, loss, state.previous)
    fall = (previous - loss) / (previous + 1e-15)
    momentum = jnp.where(first, 0, beta * state.momentum + (1 - beta) * fall)
    leap = alpha * jax.nn.sigmoid(momentum) * (1 - state.t)
    linear = t_start + (t_end - t_start) * progress
    t = jnp.minimum(t_end, jnp.maximum(linear, state.t + leap))
    return TaidState(jnp.where(first, state.t, t), loss, momentum)
