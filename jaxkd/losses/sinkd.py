"""Sinkhorn distance between a batch of students' and teachers' predictions.

Cui et al. 2024 (SinKD), arXiv:2402.17110: optimal transport across the examples of a
batch, where Kullback-Leibler divergences compare each example with itself.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped

from jaxkd.arguments import checked, positive
from jaxkd.losses.basics import (
    as_float,
    check_same_shape,
    frozen,
    log_softmax,
    zero_masked,
)
from jaxkd.losses.transport import LOWEST, pairwise_distances, sinkhorn_plan


@checked(temperature=positive, epsilon=positive)
def sinkd_loss(
    student_logits: Float[Array, "*batch examples classes"],
    teacher_logits: Float[Array, "*batch examples classes"],
    temperature: float = 2.0,
    *,
    epsilon: float = 0.1,
    iterations: int = 20,
    weights: Shaped[Array, "*batch examples"] | None = None,
    groups: Integer[Array, "*batch examples"] | None = None,
) -> Float[Array, "*batch"]:
    """Return ΣP·D of every batch, with D the L1 distances of its predictions.

    Eq. 6 to 9. The plan P has as much mass as the batch has examples, as in the
    authors' code, so the loss grows with the batch; the gradient goes through the
    iterations. It is above 0 for equal networks too, since entropy spreads the plan.

    Args:
        student_logits: z_s; leading axes are batches of their own, such as the
            positions of sequences (length, batch, vocabulary).
        teacher_logits: z_t.
        temperature: T > 0 of both softmaxes.
        epsilon: of the entropy; distances are between 0 and 2.
        iterations: of Sinkhorn's scaling.
        weights: examples of weight 0 take no part.
        groups: the number of each example's group; groups are batches of their own,
            whose distances are added.

    Raises:
        ValueError: shapes differ, or epsilon, iterations or T are not above 0.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    if weights is None:
        weights = jnp.ones(student_logits.shape[:-1])
    real = as_float(weights) > 0
    q, p = (
        jnp.exp(log_softmax(zero_masked(logits, real), temperature))
        for logits in (as_float(student_logits), frozen(teacher_logits))
    )
    cost = pairwise_distances(q, p)
    if groups is not None:
        same = groups[..., :, None] == groups[..., None, :]
        cost = jnp.where(same, cost, -LOWEST)
    mass = real.astype(cost.dtype)
    plan = sinkhorn_plan(
        cost,
        epsilon=epsilon,
        iterations=iterations,
        row_mass=mass,
        column_mass=mass,
    )
    return jnp.sum(plan * cost, axis=(-1, -2))
