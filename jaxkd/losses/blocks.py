"""Losses between the outputs of a network's block and of what takes its place."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, non_negative
from jaxkd.losses.basics import (
    as_float,
    check_same_shape,
    frozen,
    l2_normalize,
    weighted_mean,
)


@checked(eps=non_negative)
def normalized_mse_loss(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features"],
    weights: Float[Array, "batch *rest"] | None = None,
    *,
    eps: float = 0.0,
) -> Float[Array, ""]:
    """Squared error over that of a constant, for blocks that are distilled one by one.

    mean (o_s − o_t)² / mean (o_t − ε)², each over the whole batch: 1 is the error of a
    block that gives 0. Bercovich et al. 2025 (Puzzle), arXiv:2411.19146, whose code has
    ε = 1e-6.

    Args:
        student: o_s, what the new block makes of the teacher's own activations.
        teacher: o_t, what the teacher's block makes of them.
        weights: one an example or a token; None counts all once.
        eps: ε.

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(student, teacher, "outputs")
    target = frozen(teacher)
    error = weighted_mean((as_float(student) - target) ** 2, weights)
    return error / weighted_mean((target - eps) ** 2, weights)


@checked()
def cosine_loss(
    student: Float[Array, "batch *features"], teacher: Float[Array, "batch *features"]
) -> Float[Array, "batch"]:
    """Return 1 − cos(h_s, h_t) of each example's features, all of them one vector.

    A score of Puzzle's code (Bercovich et al. 2025, arXiv:2411.19146), which takes it
    of the last hidden states; over tokens, reshape to (batch · tokens, width).

    Args:
        student: h_s.
        teacher: h_t.

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(student, teacher, "features")
    s, t = (x.reshape(len(x), -1) for x in (as_float(student), frozen(teacher)))
    return 1 - jnp.sum(l2_normalize(s) * l2_normalize(t), axis=-1)
