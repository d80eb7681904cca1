"""Sinkhorn distance minimisation across the examples of a batch."""

import jax.numpy as jnp

from jaxkd.arguments import checked, positive
from jaxkd.losses.basics import as_float, weighted_loss
from jaxkd.losses.sinkd import sinkd_loss
from jaxkd.methods.base import from_loss
from jaxkd.methods.masks import batch_weights, documents, earlier_tokens
from jaxkd.types import Loss, Method


@checked(temperature=positive, epsilon=positive)
def sinkd(
    temperature: float = 2.0, *, epsilon: float = 0.1, iterations: int = 20
) -> Method:
    """Return the Sinkhorn distance of the students' and teachers' predictions.

    Cui et al. 2024, arXiv:2402.17110. It stands beside the cross-entropy and
    distillation, with a weight of 0.8 · 0.001 for batches of 16 and BERT; it grows with
    the batch. Of a language model, whose logits are (batch, length, vocabulary), it is
    the mean over positions of the distance across the batch. Of packed rows a token's
    position is that in its document: memory for (batch·length)² numbers.

    Args:
        temperature: T > 0 of both softmaxes.
        epsilon: of the entropy.
        iterations: of Sinkhorn's scaling.
    """

    def loss(student, teacher, batch):
        z_s, z_t = student.logits, teacher.logits
        weights = batch_weights(batch, z_s.shape[:-1])
        weights = jnp.ones(z_s.shape[:-1]) if weights is None else weights
        counted, groups = weights > 0, None
        numbers = documents(batch, z_s.shape) if "segment_ids" in batch else None
        if z_s.ndim == 3 and numbers is not None:
            groups = earlier_tokens(numbers, numbers > 0)
            counted = jnp.zeros(len(groups[0]), bool).at[groups].max(counted)
            z_s, z_t = (z.reshape(-1, z.shape[-1]) for z in (z_s, z_t))
            weights, groups = weights.ravel(), groups.ravel()
        elif z_s.ndim == 3:
            z_s, z_t = z_s.swapaxes(0, 1), z_t.swapaxes(0, 1)
            weights = weights.T
        distances = sinkd_loss(
            z_s,
            z_t,
            temperature,
            epsilon=epsilon,
            iterations=iterations,
            weights=weights,
            groups=groups,
        )
        if groups is not None:
            return Loss(distances, as_float(counted.sum()))
        # Of images it is one distance, which counts as often as there are examples.
        if distances.ndim == 0:
            return distances
        return weighted_loss(distances, (weights > 0).any(-1))

    return from_loss(loss, name="sinkd")
