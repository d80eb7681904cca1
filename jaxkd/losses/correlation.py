"""Losses that ask the student for the teacher's correlations, not its exact values.

Pearson's correlation forgives a shift and a scale of the predictions, so a student
need not match a much stronger teacher's confidence.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive
from jaxkd.losses.basics import (
    as_float,
    check_same_shape,
    expand_weights,
    frozen,
    log_softmax,
    weighted_mean,
    zero_masked,
)


@checked(temperature=positive)
def dist_loss(
    student_logits: Float[Array, "batch *space classes"],
    teacher_logits: Float[Array, "batch *space classes"],
    beta: float = 2.0,
    gamma: float = 2.0,
    temperature: float = 1.0,
    weights: Float[Array, "batch ..."] | None = None,
) -> Float[Array, ""]:
    """DIST: T²·(β·inter + γ·intra), each one minus a mean Pearson correlation.

    Huang et al. 2022, arXiv:2205.10536, Eq. 8-10. "Inter" correlates the two networks'
    probabilities over the classes of each row, "intra" over the rows of each class. A
    row is an example, or a pixel of a dense prediction. A constant row or class counts
    as correlation 0, with no gradient. A class at −∞ in both networks counts in no row
    where it is so.

    Args:
        student_logits: class scores; (batch, classes), or (batch, H, W, classes).
        teacher_logits: the same shape.
        beta: weight of the inter-class part.
        gamma: weight of the intra-class part.
        temperature: T > 0 divides both logits.
        weights: one an example, or one a pixel; 0 leaves it out of both parts.

    Returns:
        The loss of the batch.

    Raises:
        ValueError: shapes differ, there is only one row, or T is not above 0.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    *rows, classes = jnp.shape(student_logits)
    count = jnp.ones(rows) if weights is None else expand_weights(weights, (*rows,))
    if count.size < 2:
        raise ValueError(
            f"student_logits has shape {jnp.shape(student_logits)}: correlations over "
            "the batch need at least 2 rows, so use a larger batch"
        )
    count = count.reshape(-1)
    z_s, z_t = (
        zero_masked(logits.reshape(-1, classes), count)
        for logits in (as_float(student_logits), frozen(teacher_logits))
    )
    exists = as_float(~(jnp.isneginf(z_s) & jnp.isneginf(z_t)))
    p_s, p_t = (jnp.exp(log_softmax(z, temperature)) for z in (z_s, z_t))
    inter = weighted_mean(1 - _pearson(p_s, p_t, exists, 1), count)
    counted = exists * count[:, None]
    intra = weighted_mean(1 - _pearson(p_s, p_t, counted, 0), counted.max(0) > 0)
    return temperature**2 * (beta * inter + gamma * intra)


def _pearson(u: Array, v: Array, weights: Array, axis: int) -> Array:
    """Correlate ``u`` with ``v`` along an axis; 0 where either is constant."""
    total = weights.sum(axis, keepdims=True)
    total = jnp.where(total > 0, total, 1)

    def centre(x: Array) -> tuple[Array, Array, Array]:
        centred = x - jnp.sum(weights * x, axis, keepdims=True) / total
        square = jnp.sum(weights * centred**2, axis)
        # What is left of a constant is rounding, and 1e-8 below would not tame it.
        rounding = (4 * jnp.finfo(x.dtype).eps) ** 2
        return centred, square, square <= rounding * jnp.sum(weights * x**2, axis)

    u, square_u, constant_u = centre(u)
    v, square_v, constant_v = centre(v)
    product = square_u * square_v
    constant = constant_u | constant_v | (product == 0)
    norms = jnp.sqrt(jnp.where(constant, 1, product))
    return jnp.where(constant, 0, jnp.sum(weights * u * v, axis) / (norms + 1e-8))
