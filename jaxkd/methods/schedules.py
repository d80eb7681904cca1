"""Weights over training that the papers count in epochs, as schedules of the step."""

import jax.numpy as jnp

from jaxkd.arguments import checked, count
from jaxkd.methods.base import Schedule


@checked(steps_per_epoch=count, epochs=count)
def epoch_warmup(weight: float, steps_per_epoch: int, epochs: int = 20) -> Schedule:
    """Return weight·min(epoch / epochs, 1), epochs counted from 1 (DKD, ReviewKD).

    Args:
        weight: after the warm-up.
        steps_per_epoch: steps in one epoch.
        epochs: until the weight is reached.
    """
    return lambda step: (
        weight * jnp.minimum((step // steps_per_epoch + 1) / epochs, 1.0)
    )


@checked(steps_per_epoch=count, epochs=count)
def ctkd_curriculum(steps_per_epoch: int, epochs: int = 10) -> Schedule:
    """Return CTKD's λ: from 0 to −1 on a cosine over the first epochs, then −1.

    Args:
        steps_per_epoch: steps in one epoch.
        epochs: until λ is −1.
    """

    def strength(step):
        epoch = jnp.minimum(step // steps_per_epoch, epochs)
        return (jnp.cos(jnp.pi * epoch / epochs) + 1) / 2 - 1

    return strength
