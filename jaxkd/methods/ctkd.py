"""Curriculum temperature."""

import jax.numpy as jnp

from jaxkd.arguments import checked
from jaxkd.losses.divergences import ctkd_temperature, kd_loss
from jaxkd.methods.base import Schedule, masked_loss
from jaxkd.methods.masks import masked
from jaxkd.types import Method


@checked()
def ctkd(strength: Schedule, t_start: float = 1.0, t_end: float = 20.0) -> Method:
    """Return distillation at a temperature learnt against the student.

    Li et al. 2023, arXiv:2211.16231, with the global temperature. Its logit θ starts at
    1 and trains with the student, by the same optimizer.

    Args:
        strength: λ of the step, the factor on θ's gradient; `ctkd_curriculum` is the
            paper's.
        t_start: the lowest temperature.
        t_end: the range above it.
    """

    def init(key, student, teacher, batch):
        return {"params": {"theta": jnp.ones(())}, "state": {}}

    def loss(variables, student, teacher, batch, key, step):
        theta = variables["params"]["theta"]
        temperature = ctkd_temperature(theta, strength(step), t_start, t_end)
        losses = kd_loss(student.logits, teacher.logits, temperature)
        value = masked_loss(losses, batch)
        return value, (variables["state"], {"ctkd": value, "temperature": temperature})

    return masked(Method(init, loss))
