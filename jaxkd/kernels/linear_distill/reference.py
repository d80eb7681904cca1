"""The meaning: all logits at once, differentiated by JAX."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxkd.kernels.linear_distill.rows import Objective, local_labels, summarize


def reference(
    objective: Objective,
    student_hidden: Array,
    student_head: Array,
    teacher_hidden: Array,
    teacher_head: Array,
    weights: Array,
    label_weights: Array,
    labels: Array | None,
    interpolation: Array | None,
) -> tuple[Array, Array, Array]:
    """Return the weighted sum, and each token's divergence and cross-entropy."""
    counts = (weights != 0) | (label_weights != 0)

    def logits(hidden: Array, head: Array) -> Array:
        hidden = jnp.where(counts[:, None], hidden, 0)
        return jnp.dot(hidden, head, preferred_element_type=weights.dtype)

    if labels is not None:
        labels = local_labels(labels, student_head.shape[1], objective.axis_name)
    divergence, cross_entropy, _ = summarize(
        objective,
        logits(student_hidden, student_head),
        logits(teacher_hidden, teacher_head),
        labels,
        interpolation,
    )
    divergence = jnp.where(weights != 0, divergence, 0)
    cross_entropy = jnp.where(label_weights != 0, cross_entropy, 0)
    total = (weights * divergence + label_weights * cross_entropy).sum()
    return total, divergence, cross_entropy
