"""Losses of several networks, brought to one magnitude."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.losses.basics import as_float


@checked()
def balance_losses(losses: Float[Array, "shapes"]) -> Float[Array, "shapes"]:
    """Scale each loss to the value of the first: ℓ_i·sg(ℓ_0/ℓ_i).

    Fu et al. 2024 (AmoebaLLM), arXiv:2411.10606: the largest shape's loss comes first,
    and small shapes do not dominate what is trained. Give losses that stay away from 0,
    such as soft cross-entropy (`cross_entropy_loss` of probabilities): a KL divergence
    that vanishes has a factor without bound. A loss of exactly 0 stays 0.

    Args:
        losses: one a shape, each at least 0.

    Returns:
        Losses all equal to the first, with gradients of their own.
    """
    losses = as_float(losses)
    factors = losses[0] / jnp.where(losses == 0, 1, losses)
    return losses * jax.lax.stop_gradient(factors)
