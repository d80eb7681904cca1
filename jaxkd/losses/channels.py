"""Losses that compare how channels, or classes, go together over a network's maps.

Correlations of channels with channels do not depend on the maps' size, so student and
teacher may differ in height and width; their channels must be as many.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.losses.basics import (
    EPS,
    as_float,
    check_array,
    expand_weights,
    frozen,
    zero_masked,
)

# Accelerators multiply float32 matrices in bfloat16 or TF32 unless told otherwise:
# too coarse for differences of correlations.
_EXACT = jax.lax.Precision.HIGHEST


@checked()
def ickd_loss(
    student: Float[Array, "batch *student_positions channels"],
    teacher: Float[Array, "batch *teacher_positions channels"],
) -> Float[Array, "batch"]:
    """Inter-channel correlation: squared gap of the channels' Gram matrices, / D.

    Liu et al. 2021, arXiv:2202.03680, in the form of Dong et al. 2023 (DisWOT),
    arXiv:2303.15678: each row of the D x D Gram matrix is divided by its Euclidean norm
    (at least 1e-12), and the sum over all entries by D.

    Args:
        student: features of D channels; a vector is a map of one position.
        teacher: features of D channels, at any number of positions.

    Returns:
        The loss of each example.

    Raises:
        ValueError: batch sizes or channels differ.
    """
    check_array("teacher_features", teacher)
    check_array("student_features", student)
    if student.shape[0] != teacher.shape[0] or student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student_features has shape {student.shape} but teacher_features has "
            f"{teacher.shape}: examples (first axis) and channels (last axis) must be "
            "as many; where the channels are not, compare class activation maps"
        )

    def correlations(x: Array) -> Array:
        x = x.reshape(len(x), -1, x.shape[-1])
        return _unit_rows(jnp.einsum("bpc,bpd->bcd", x, x, precision=_EXACT))

    gap = correlations(as_float(student)) - correlations(frozen(teacher))
    return jnp.sum(gap**2, axis=(1, 2)) / student.shape[-1]


@checked()
def class_activation_maps(
    features: Float[Array, "batch height width channels"],
    kernel: Float[Array, "channels classes"],
) -> Float[Array, "batch height width classes"]:
    """Each class's evidence at each position of the last convolutional map.

    Zhou et al. 2016, arXiv:1512.04150, Eq. 2. Their mean over positions, plus the bias,
    is the logits of a network that ends in global average pooling and one linear layer.

    Args:
        features: the map before pooling.
        kernel: the linear layer's.

    Raises:
        ValueError: the kernel is of other channels.
    """
    if jnp.ndim(kernel) != 2 or len(kernel) != features.shape[-1]:
        raise ValueError(
            f"kernel has shape {jnp.shape(kernel)} but features have shape "
            f"{features.shape}: give the last linear layer's, (channels, classes)"
        )
    return jnp.einsum(
        "bhwc,cn->bhwn", as_float(features), as_float(kernel), precision=_EXACT
    )


@checked()
def cam_relation_loss(
    student: Float[Array, "batch *student_positions classes"],
    teacher: Float[Array, "batch *teacher_positions classes"],
    weights: Float[Array, "batch"] | None = None,
) -> Float[Array, ""]:
    """Squared gap of the classes' correlation matrices over all activation maps, / N².

    Dong et al. 2023 (DisWOT), arXiv:2303.15678, the semantic metric and its loss: the
    N x N Gram matrix of the classes' maps over a whole batch, each row over its
    Euclidean norm. Where the paper prints the norm of the gap, this is its square, as
    in the authors' relation metric: it has a gradient where the gap is 0.

    Args:
        student: class activation maps, `class_activation_maps`.
        teacher: likewise, at any number of positions.
        weights: one an example.

    Returns:
        The loss of the batch.

    Raises:
        ValueError: batch sizes or classes differ.
    """
    check_array("teacher_maps", teacher)
    if student.shape[0] != teacher.shape[0] or student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student_maps has shape {student.shape} but teacher_maps has "
            f"{teacher.shape}: give both networks the same batch and classes"
        )

    def correlations(x: Array) -> Array:
        x = zero_masked(x, weights)
        weighted = x if weights is None else x * expand_weights(weights, x.shape)
        x, weighted = (a.reshape(-1, a.shape[-1]) for a in (x, weighted))
        return _unit_rows(jnp.matmul(x.T, weighted, precision=_EXACT))

    gap = correlations(as_float(student)) - correlations(frozen(teacher))
    return jnp.mean(gap**2)


def _unit_rows(x: Array) -> Array:
    """Return rows over their Euclidean norms, or over `EPS` where that is more.

    Such short rows, of a channel that is dead, get no gradient: it would be 1e12.
    """
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    short = square <= EPS**2
    units = x * jax.lax.rsqrt(jnp.where(short, 1, square))
    return jnp.where(short, jax.lax.stop_gradient(x) / EPS, units)
