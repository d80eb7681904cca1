"""Losses that compare how the examples of a batch relate to one another.

Distances, angles or similarities between the examples' features are matched, never
the features themselves, so student and teacher may have different widths. Each is a
mean over pairs (or triples) of examples: ``weights`` gives a pair the product of its
examples' weights, and an example of weight 0 is as good as absent.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.losses.basics import (
    EPS,
    absolute,
    as_float,
    check_array,
    check_same_batch,
    check_same_shape,
    frozen,
    l2_normalize,
    pair_weights,
    weighted_mean,
    zero_masked,
)

# Accelerators multiply float32 matrices in bfloat16 or TF32 unless told otherwise:
# too coarse for differences of similarities.
_EXACT = jax.lax.Precision.HIGHEST


def _examples(
    student: Array, teacher: Array, weights: Array | None, rank: int | None = None
) -> tuple[Array, Array, Array]:
    """Check and cast a loss's three arrays; masked examples become zeros."""
    check_same_batch(student, teacher, "features")
    check_array("student_features", student, rank)
    check_array("teacher_features", teacher, rank)
    weights = jnp.ones(len(student)) if weights is None else as_float(weights)
    student = zero_masked(as_float(student), weights)
    return student, zero_masked(frozen(teacher), weights), weights


@checked()
def rkd_loss(
    student: Float[Array, "batch student_dim"],
    teacher: Float[Array, "batch teacher_dim"],
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    weights: Float[Array, "batch"] | None = None,
) -> Float[Array, ""]:
    """Relational distillation: Huber losses of pairs' distances and triples' angles.

    Park et al. 2019, arXiv:1904.05068, Eq. 5-9. Distances are divided by their mean
    over different examples. Takes memory for batch²·dim and batch³ numbers.

    Args:
        student: features.
        teacher: features, of any width.
        distance_weight: weight of the distances.
        angle_weight: weight of the angles.
        weights: one an example.

    Returns:
        The loss of the batch.

    Raises:
        ValueError: batch sizes differ or are below 2, or features are not 2-D.
    """
    student, teacher, weights = _examples(student, teacher, weights, rank=2)
    pairs = pair_weights(weights, len(student))
    different = ~jnp.eye(len(student), dtype=bool)

    def relations(x: Array) -> tuple[Array, Array]:
        gaps = x[None, :, :] - x[:, None, :]
        # The floor, the authors', also keeps the slope of sqrt at 0 out of the way.
        distances = jnp.sqrt(jnp.maximum(jnp.sum(gaps**2, axis=-1), EPS))
        distances = jnp.where(different, distances, 0)
        mean = weighted_mean(distances, pairs * different)
        distances = distances / jnp.where(mean > 0, mean, 1)
        units = l2_normalize(gaps)
        return distances, jnp.einsum("ijd,ikd->ijk", units, units, precision=_EXACT)

    distances_s, cosines_s = relations(student)
    distances_t, cosines_t = relations(teacher)
    distance = weighted_mean(optax.losses.huber_loss(distances_s, distances_t), pairs)
    triples = weights[:, None, None] * pairs
    angle = weighted_mean(optax.losses.huber_loss(cosines_s, cosines_t), triples)
    return distance_weight * distance + angle_weight * angle


@checked()
def pkt_loss(
    student: Float[Array, "batch student_dim"],
    teacher: Float[Array, "batch teacher_dim"],
    weights: Float[Array, "batch"] | None = None,
) -> Float[Array, ""]:
    """Probabilistic knowledge transfer: KL divergence of the examples' affinities.

    Passalis, Tefas 2018, arXiv:1803.10837, Eq. 6-8, with the cosine kernel. An
    example's affinities to all examples, itself included, sum to 1. The mean runs over
    all pairs, so the loss is small: its usual factor is 30000.

    Args:
        student: features.
        teacher: features, of any width.
        weights: one an example.

    Returns:
        The loss of the batch.

    Raises:
        ValueError: batch sizes differ or are below 2, or features are not 2-D.
    """
    student, teacher, weights = _examples(student, teacher, weights, rank=2)
    eps = 1e-7

    def affinities(x: Array) -> Array:
        square = jnp.sum(x**2, axis=1, keepdims=True)
        zero = square == 0
        x = jnp.where(zero, 0, x / (jnp.sqrt(jnp.where(zero, 1, square)) + eps))
        cosines = jnp.matmul(x, x.T, precision=_EXACT)
        # Rounding takes the cosine of opposite vectors below −1, and the log to NaN.
        kernel = jnp.maximum((cosines + 1) / 2, 0)
        total = jnp.sum(weights * kernel, axis=1, keepdims=True)
        return kernel / jnp.where(total > 0, total, 1)

    p_s, p_t = affinities(student), affinities(teacher)
    divergence = p_t * jnp.log((p_t + eps) / (p_s + eps))
    return weighted_mean(divergence, pair_weights(weights, len(student)))


@checked()
def sp_loss(
    student: Float[Array, "batch *student_dims"],
    teacher: Float[Array, "batch *teacher_dims"],
    weights: Float[Array, "batch"] | None = None,
) -> Float[Array, ""]:
    """Similarity-preserving distillation: squared gap of the similarity matrices.

    Tung, Mori 2019, arXiv:1907.09682, Eq. 1-4: the Gram matrix of the flattened
    features, each row over its Euclidean norm.

    Args:
        student: features, such as the last convolutional map.
        teacher: features, of any other shape.
        weights: one an example.

    Returns:
        The loss of the batch.

    Raises:
        ValueError: batch sizes differ or are below 2.
    """
    student, teacher, weights = _examples(student, teacher, weights)

    def similarities(x: Array) -> Array:
        x = x.reshape(len(x), -1)
        gram = jnp.matmul(x, x.T, precision=_EXACT)
        square = jnp.sum(weights * gram**2, axis=1, keepdims=True)
        zero = square <= EPS**2
        return jnp.where(zero, 0, gram * jax.lax.rsqrt(jnp.where(zero, 1, square)))

    gap = similarities(student) - similarities(teacher)
    return weighted_mean(gap**2, pair_weights(weights, len(student)))


@checked()
def cc_loss(
    student: Float[Array, "batch dim"],
    teacher: Float[Array, "batch dim"],
    weights: Float[Array, "batch"] | None = None,
) -> Float[Array, ""]:
    """Correlation congruence, as its reference code has it: Σ_d δ[b]·δ[b+1].

    Peng et al. 2019, arXiv:1904.01802. δ is the absolute difference of learnt
    embeddings; the mean runs over neighbours in the batch. The paper compares kernel
    matrices instead, but all published comparisons ran this.

    Args:
        student: embeddings.
        teacher: embeddings of the same width. They get a gradient, since the layer
            that makes them is trained too: freeze what that layer reads.
        weights: one an example; a pair with a masked neighbour is left out.

    Returns:
        The loss of the batch.

    Raises:
        ValueError: shapes differ, the batch is below 2, or embeddings are not 2-D.
    """
    check_same_shape(student, teacher, "features")
    check_same_batch(student, teacher, "features")
    check_array("student_features", student, 2)
    student, teacher = (zero_masked(as_float(x), weights) for x in (student, teacher))
    gap = absolute(student - teacher)
    products = jnp.sum(gap[:-1] * gap[1:], axis=1)
    pairs = None if weights is None else as_float(weights[:-1]) * as_float(weights[1:])
    return weighted_mean(products, pairs)
