"""Temporally adaptive interpolated distillation."""

import jax
import jax.numpy as jnp

from jaxkd.arguments import checked, count
from jaxkd.kernels.linear_distill import soft_cross_entropy
from jaxkd.losses.taid import taid_init, taid_loss, taid_update
from jaxkd.methods.base import masked_loss
from jaxkd.methods.linear_kd import TAPS, linear_kd_loss
from jaxkd.methods.masks import masked
from jaxkd.types import Loss, Method, MethodVariables


@checked(total_steps=count)
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
    nothing = Loss(jnp.zeros(()), jnp.zeros(()))

    def update(state, step):
        """Move t by the loss of the whole batch, in however many parts it came."""
        schedule = taid_update(
            state["schedule"],
            state["seen"].value,
            step / total_steps,
            t_start=t_start,
            t_end=t_end,
            alpha=alpha,
            beta=beta,
        )
        return {"schedule": schedule, "seen": nothing}

    start = {"schedule": taid_init(t_start), "seen": nothing}
    update(start, 0)  # Refuses bad numbers before a step is compiled.

    def init(key, student, teacher, batch) -> MethodVariables:
        return {"params": {}, "state": start}

    def loss(variables, student, teacher, batch, key, step):
        state, t = variables["state"], variables["state"]["schedule"].t
        if from_heads:
            found = linear_kd_loss(
                student, teacher, batch, soft_cross_entropy, interpolation=t
            )
        else:
            losses = taid_loss(student.logits, teacher.logits, t)
            found = masked_loss(losses, batch)
        seen = jax.tree.map(jnp.add, state["seen"], jax.lax.stop_gradient(found))
        return found, ({**state, "seen": seen}, {"taid": found, "t": t})

    taps = TAPS if from_heads else ()
    return masked(Method(init, loss, taps, taps, update=update))
