"""Temporally adaptive interpolated distillation."""

import jax.numpy as jnp

from jaxkd.kernels.linear_distill import soft_cross_entropy
from jaxkd.losses.basics import weighted_mean
from jaxkd.losses.taid import taid_init, taid_loss, taid_update
from jaxkd.methods.base import batch_weights
from jaxkd.methods.linear_kd import TAPS, linear_kd_loss
from jaxkd.types import Method, MethodVariables


def taid(
    total_steps: int,
    *,
    t_start: float = 0.4,
    t_end: float = 1.0,
    alpha: float = 5e-4,
    beta: float = 0.99,
    from_heads: bool = False,
) -> Method:
    """Return distillation from a target that moves from the student to the teacher.

    Shing et al. 2025, arXiv:2501.16937, which trains with it alone. Its t is carried in
    the state, and checkpointed with it.

    Args:
        total_steps: of the training, at which t reaches ``t_end`` at the latest.
        t_start: t of the first step; 0.4 for a large gap between the networks, else
            0.2.
        t_end: t of the last step.
        alpha: the most that t may leap a step; 0 leaves it linear in the step.
        beta: of the momentum of the loss's fall.
        from_heads: from hidden states and heads, without logits in memory, as
            `linear_kd`; the same numbers.

    Raises:
        ValueError: ``total_steps`` below 1, or numbers outside their ranges.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    start = taid_init(t_start)

    def update(state, loss, step):
        return taid_update(
            state,
            loss,
            step / total_steps,
            t_start=t_start,
            t_end=t_end,
            alpha=alpha,
            beta=beta,
        )

    update(start, jnp.ones(()), 0)  # Refuses bad numbers before a step is compiled.

    def init(key, student, teacher, batch) -> MethodVariables:
        return {"params": {}, "state": taid_init(t_start)}

    def loss(variables, student, teacher, batch, key, step):
        state = variables["state"]
        if from_heads:
            value = linear_kd_loss(
                student, teacher, batch, soft_cross_entropy, interpolation=state.t
            )
        else:
            losses = taid_loss(student.logits, teacher.logits, state.t)
            value = weighted_mean(losses, batch_weights(batch, losses.shape))
        return value, (update(state, value, step), {"taid": value, "t": state.t})

    taps = TAPS if from_heads else ()
    return Method(init, loss, taps, taps)
