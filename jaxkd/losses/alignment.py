"""Features of tokens that are to agree value by value, as unit vectors or as they are.

`features.hint_loss` compares features as they are, by squared differences.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.losses.basics import (
    absolute,
    as_float,
    check_array,
    check_same_shape,
    frozen,
    l2_normalize,
)


@checked()
def feature_align_loss(
    student: Float[Array, "batch *tokens width"],
    teacher: Float[Array, "batch *tokens width"],
    distance: Literal["l1", "l2"] = "l1",
    *,
    normalize: bool = True,
) -> Float[Array, "batch"]:
    """Mean distance of tokens' features, value by value.

    Bai et al. 2022 (DMAE), arXiv:2208.12256: mean abs(q/‖q‖ − z/‖z‖), with q the
    student's features after a projector. The authors' code normalises where there is a
    projector, and compares the raw features where there is none.

    Args:
        student: features of the teacher's width.
        teacher: those of the same tokens.
        distance: absolute difference, or its square.
        normalize: whether every token's features are divided by their Euclidean norm.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, or there is no axis beside the batch.
    """
    _check(student, teacher)
    student, teacher = as_float(student), frozen(teacher)
    if normalize:
        student, teacher = l2_normalize(student), l2_normalize(teacher)
    difference = student - teacher
    apart = absolute(difference) if distance == "l1" else difference**2
    return apart.mean(tuple(range(1, apart.ndim)))


def _check(student: Array, teacher: Array) -> None:
    check_array("student", student)
    check_same_shape(student, teacher, "features")
    if jnp.ndim(student) < 2:
        raise ValueError(
            f"student has shape {jnp.shape(student)}: this loss needs a batch axis and "
            "at least one more, so give it (batch, ..., features)"
        )
