"""How well a language model predicts the next token."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd.data.sources import Examples
from jaxkd.losses.basics import expand_weights
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.methods.base import batch_weights
from jaxkd.programs.distill import network_inputs
from jaxkd.types import Batch, Network, Variables


def token_evaluator(
    network: Network, test: Examples, batch_size: int = 64
) -> Callable[[Variables], dict[str, float]]:
    """Return ``variables -> metrics``: ``nll``, in nats a token, and ``perplexity``.

    Tokens that ``mask`` or ``weight`` leaves out do not count.

    Args:
        network: whose logits are (batch, length, vocabulary).
        test: examples with ``input_ids`` and ``label``, such as `data.Windows`.
        batch_size: of the forward passes.

    Raises:
        ValueError: from the function returned, no token counts.
    """
    size = min(batch_size, len(test))

    @jax.jit
    def summed(variables: Variables, batch: Batch, real: Array) -> tuple[Array, Array]:
        outputs, _ = network.apply(variables, network_inputs(batch))
        losses = cross_entropy_loss(outputs.logits, batch["label"])
        weights = batch_weights(batch, losses.shape)
        weights = jnp.ones_like(losses) if weights is None else weights
        weights = expand_weights(real, losses.shape) * weights
        return jnp.sum(jnp.where(weights > 0, losses * weights, 0)), weights.sum()

    def evaluate(variables: Variables) -> dict[str, float]:
        total = count = 0.0
        for start in range(0, len(test), size):
            rows = np.arange(start, start + size)
            # The last batch is filled up, so that all are of one shape.
            batch = test.take(np.minimum(rows, len(test) - 1))
            loss, weight = summed(variables, batch, rows < len(test))
            total, count = total + float(loss), count + float(weight)
        if not count:
            raise ValueError(f"data set {test.name!r} has no token that is not masked")
        nll = total / count
        return {"nll": nll, "perplexity": math.exp(nll)}

    return evaluate
