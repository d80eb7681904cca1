"""What keeps a mixture of experts from sending all tokens to a few of them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxkd.arguments import checked, count
from jaxkd.losses.routing import (
    Scores,
    expert_load,
    load_balance_loss,
    router_z_loss,
)
from jaxkd.methods.base import masked_loss, summed
from jaxkd.methods.masks import batch_weights, masked
from jaxkd.types import Loss, Method


@checked(k=count)
def expert_balance(
    taps: Sequence[str],
    k: int = 2,
    *,
    balance: float = 1.0,
    z: float = 0.1,
    scores: Scores = "softmax",
    by_sequence: bool = False,
) -> Method:
    """Return the load-balance and z losses of a student's routers, summed over layers.

    Fedus, Zoph, Shazeer 2021, arXiv:2101.03961, and Zoph et al. 2022,
    arXiv:2202.08906, whose weights (0.01 and 0.001) are ``combine((1.0,
    cross_entropy()), (0.01, expert_balance(["block0.router"])))``. The metrics hold the
    least and the largest share of the tokens that an expert of any layer gets: one
    whose share is 0 learns nothing.

    Args:
        taps: of routers' logits (batch, …, experts), see `jaxkd.models.parts.moe`.
        k: experts of a token.
        balance: weight of `losses.load_balance_loss`.
        z: weight of `losses.router_z_loss`.
        scores: as in `losses.load_balance_loss`.
        by_sequence: whether the load is balanced within each example, as DeepSeek-V3
            does, and not only over the batch.

    Raises:
        ValueError: no taps.
    """
    if isinstance(taps, str) or not taps:
        raise ValueError(f"taps must be a sequence of at least one name, got {taps!r}")

    def init(key, student, teacher, batch):
        return {"params": {}, "state": {}}

    def loss(variables, student, teacher, batch, key, step):
        terms: list[tuple[float, Loss]] = []
        loads = []
        for tap in taps:
            logits = student.features[tap]
            weights = batch_weights(batch, logits.shape[:-1])
            rows = logits.reshape(-1, logits.shape[-1])
            flat = None if weights is None else weights.reshape(-1)
            if by_sequence:
                examples = len(logits)
                each = None if flat is None else flat.reshape(examples, -1)
                even = jax.vmap(lambda z, w: load_balance_loss(z, k, w, scores))(
                    logits.reshape(examples, -1, logits.shape[-1]), each
                )
            else:
                even = load_balance_loss(rows, k, flat, scores)
            terms += [
                (balance, masked_loss(even, batch)),
                (z, masked_loss(router_z_loss(logits), batch)),
            ]
            loads.append(expert_load(rows, k, flat))
        total = summed(*terms)
        load = jnp.stack(loads)
        found = {"least_load": load.min(), "largest_load": load.max()}
        return total, ({}, {"expert_balance": total, **found})

    return masked(Method(init, loss, tuple(taps)))
