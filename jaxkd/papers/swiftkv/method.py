"""SwiftKV's self-distillation: the model repairs what its rewiring broke.

Qiao et al. 2024, arXiv:2410.03960; the hidden states' term is in the authors' code.
"""

from typing import Any

import jax.numpy as jnp

from jaxkd.arguments import checked, positive
from jaxkd.checks import unknown_name
from jaxkd.kernels.linear_distill import forward_kl
from jaxkd.losses import hint_loss, weighted_loss
from jaxkd.methods.base import summed
from jaxkd.methods.linear_kd import TAPS, linear_kd_loss
from jaxkd.methods.masks import batch_weights, documents, masked, same_document
from jaxkd.types import Batch, Loss, Method, MethodVariables, Outputs

DIVISORS = ("tokens", "positions")


@checked(temperature=positive)
def swiftkv(
    hidden_tap: str | None = None,
    *,
    temperature: float = 2.0,
    hidden_weight: float = 1.0,
    divisor: str = "tokens",
) -> Method:
    """Return KL(teacher, student) of next tokens, and the distance of hidden states.

    The logits are never held (`jaxkd.kernels.linear_distill`), the hidden states
    compared at all tokens, prompts too, of documents that have any that counts. With
    `jaxkd.networks.freezing.train_only` and `conversion.TRAINED` only queries, keys
    and values are trained.

    Args:
        hidden_tap: ``block{L-2}`` of L layers, what enters the last one, as the authors
            have it; None for the paper's text, which compares no hidden states.
        temperature: T > 0, of both; the KL is times T².
        hidden_weight: of the hidden states' mean squared difference.
        divisor: ``tokens`` that count divide the KL's sum, or all ``positions``, as in
            the authors' code.

    Raises:
        ValueError: an unknown divisor.
    """
    if divisor not in DIVISORS:
        raise ValueError(unknown_name("divisor", divisor, DIVISORS))
    taps = TAPS if hidden_tap is None else (*TAPS, hidden_tap)

    def init(key, student, teacher, batch) -> MethodVariables:
        return {"params": {}, "state": {}}

    def loss(
        variables: Any, student: Outputs, teacher: Outputs, batch: Batch, key, step
    ) -> tuple[Loss, tuple[Any, dict[str, Loss]]]:
        shape = student.features["final"].shape[:-1]
        weights = batch_weights(batch, shape)
        weights = jnp.ones(shape) if weights is None else weights
        total = linear_kd_loss(
            student, teacher, batch, forward_kl, temperature=temperature
        )
        if divisor == "positions":
            total = Loss(total.total, jnp.full((), weights.size, float))
        metrics = {"swiftkv_kl": total}
        if hidden_tap is not None:
            states = (outputs.features[hidden_tap] for outputs in (student, teacher))
            apart = hint_loss(*(x.reshape(-1, x.shape[-1]) for x in states))
            numbers = documents(batch, shape)
            numbers = jnp.ones(shape, int) if numbers is None else numbers
            learnt = same_document(numbers) & (weights > 0)[:, None, :]
            counted = learnt.any(-1) & (numbers > 0)
            hidden = weighted_loss(apart, counted.reshape(-1))
            metrics["swiftkv_hidden"] = hidden
            total = summed((1.0, total), (hidden_weight, hidden))
        return total, (variables["state"], metrics)

    return masked(Method(init, loss, taps, taps))
