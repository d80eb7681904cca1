"""Losses that compare intermediate features value by value.

Student and teacher features have the same shape: where they differ, a projector of
`jaxkd.methods.modules` comes first. Channels are last, and each loss returns one value
an example. The teacher gets no gradient.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxkd.arguments import checked, positive, probability
from jaxkd.losses.basics import (
    as_float,
    check_array,
    check_same_shape,
    frozen,
)
from jaxkd.losses.pooling import adaptive_average_pool, match_size


def _check_features(student: Array, teacher: Array) -> None:
    check_array("student", student)
    check_same_shape(student, teacher, "features")
    if jnp.ndim(student) < 2:
        raise ValueError(
            f"student has shape {jnp.shape(student)}: this loss needs a batch axis and "
            "at least one more, so give it (batch, features) or (batch, ..., channels)"
        )


def _check_per_channel(name: str, x: Array, channels: int) -> None:
    if jnp.shape(x) != (channels,):
        raise ValueError(
            f"{name} has shape {jnp.shape(x)} but the features have {channels} "
            f"channels: give it the shape ({channels},)"
        )


def _check_channels(student: Array, teacher: Array) -> None:
    check_array("student", student, rank=4)
    check_array("teacher", teacher, rank=4)
    if jnp.shape(student)[-1] != jnp.shape(teacher)[-1]:
        raise ValueError(
            f"student has shape {jnp.shape(student)} but teacher has shape "
            f"{jnp.shape(teacher)}, and their channels (last axis) must agree: put a "
            "Connector on the student's map, or tap layers of equal width"
        )


def _example_mean(x: Array) -> Array:
    return x.mean(axis=tuple(range(1, x.ndim)))


def _example_sum(x: Array) -> Array:
    return x.sum(axis=tuple(range(1, x.ndim)))


@checked()
def hint_loss(
    student: Float[Array, "batch *features"], teacher: Float[Array, "batch *features"]
) -> Float[Array, "batch"]:
    """Mean squared difference of features.

    Romero et al. 2015 (FitNets), arXiv:1412.6550, Eq. 3; the mean instead of half the
    sum, as all later code takes it (weight 100). SimKD's loss (Chen et al. 2022,
    arXiv:2203.14001) is the same.

    Args:
        student: the student's features after its regressor.
        teacher: the teacher's, of the same shape.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, or there is no axis beside the batch.
    """
    _check_features(student, teacher)
    return _example_mean((as_float(student) - frozen(teacher)) ** 2)


@checked(eps=positive)
def vid_log_scale_init(variance: float = 5.0, eps: float = 1e-5) -> float:
    """Return the ``log_scale`` at which `vid_loss` has a given variance.

    Raises:
        ValueError: ``variance`` is not above ``eps``.
    """
    if variance <= eps:
        raise ValueError(f"variance must be above eps = {eps}, got {variance}")
    excess = variance - eps
    return excess + math.log(-math.expm1(-excess))


@checked(eps=positive)
def vid_loss(
    mean: Float[Array, "batch *space channels"],
    log_scale: Float[Array, "channels"],
    teacher: Float[Array, "batch *space channels"],
    eps: float = 1e-5,
) -> Float[Array, "batch"]:
    """Variational information distillation: Gaussian negative log-likelihood.

    Ahn et al. 2019, arXiv:1904.05835, with σ² = softplus(log_scale) + ε for
    each channel; the mean over positions and channels, without the constant.

    Args:
        mean: the regressor's prediction of the teacher's features.
        log_scale: the learnt scale (see `vid_log_scale_init`).
        teacher: the teacher's features.
        eps: the least variance.

    Returns:
        The loss of each example; it can be negative.

    Raises:
        ValueError: shapes differ, or ``log_scale`` is not one value a channel.
    """
    _check_features(mean, teacher)
    _check_per_channel("log_scale", log_scale, jnp.shape(mean)[-1])
    variance = jax.nn.softplus(as_float(log_scale)) + eps
    square = (as_float(mean) - frozen(teacher)) ** 2
    return _example_mean(0.5 * (square / variance + jnp.log(variance)))


@checked(margin=positive)
def ab_loss(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features"],
    margin: float = 1.0,
) -> Float[Array, "batch"]:
    """Activation boundaries: squared hinge on which neurons the teacher activates.

    Heo et al. 2019, arXiv:1811.03233, with features from before the ReLU; the
    sum over positions and channels. The authors weight stage i of L by 2^{i−L+1} and
    the batch mean by 3/1000, and train with it alone before the labels.

    Args:
        student: the student's features after its connector.
        teacher: the teacher's, of the same shape; only their signs matter.
        margin: how far beyond 0 the student's are pushed.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, or the margin is not above 0.
    """
    _check_features(student, teacher)
    # The hinge faces the side the teacher is on: −1 if active, +1 if not.
    side = jnp.where(frozen(teacher) > 0, -1, 1)
    return _example_sum(jax.nn.relu(margin + side * as_float(student)) ** 2)


@checked()
def fsp_matrix(
    first: Float[Array, "batch h1 w1 c1"], second: Float[Array, "batch h2 w2 c2"]
) -> Float[Array, "batch c1 c2"]:
    """Flow of the solution procedure: products of two layers' channels over positions.

    Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR, Eq. 1. It is
    differentiable in both arguments; `fsp_loss` stops the teacher's.

    Args:
        first: the earlier layer's maps.
        second: the later layer's; the larger of the two is average-pooled to the size
            of the smaller.

    Returns:
        The mean product over positions for each pair of channels.

    Raises:
        ValueError: either is no batch of maps, or the batches differ.
    """
    first, second = match_size(first, second)
    positions = first.shape[1] * first.shape[2]
    products = jnp.einsum("bhwc,bhwd->bcd", first, second, precision="highest")
    return products / positions


@checked()
def fsp_loss(
    student_pair: tuple[
        Float[Array, "batch hs1 ws1 c1"], Float[Array, "batch hs2 ws2 c2"]
    ],
    teacher_pair: tuple[
        Float[Array, "batch ht1 wt1 c1"], Float[Array, "batch ht2 wt2 c2"]
    ],
) -> Float[Array, "batch"]:
    """Mean squared difference of the FSP matrices of two pairs of layers.

    Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR, Eq. 2.

    Args:
        student_pair: the student's maps of two layers.
        teacher_pair: the teacher's, of any size and the same channels.

    Returns:
        The loss of each example.

    Raises:
        ValueError: channels or batches differ, or an array is no batch of maps.
    """
    for student, teacher in zip(student_pair, teacher_pair, strict=True):
        _check_channels(student, teacher)
    return hint_loss(fsp_matrix(*student_pair), fsp_matrix(*teacher_pair))


@checked()
def ofd_margin(
    scale: Float[Array, "channels"], bias: Float[Array, "channels"]
) -> Float[Array, "channels"]:
    """Expected negative response of a BatchNorm's channel: E[x | x < 0].

    Heo et al. 2019, arXiv:1904.01866: x is Gaussian with mean β and deviation s =
    abs(γ); where x < 0 is rarer than 0.001, −3s. The ratio of density and distribution
    is taken through its logarithm; a channel with γ = 0 is constant and gets min(β, 0).

    Args:
        scale: γ of the BatchNorm before the teacher's ReLU.
        bias: its β.

    Raises:
        ValueError: the shapes differ or are not one value a channel.
    """
    check_array("scale", scale, rank=1)
    _check_per_channel("bias", bias, jnp.shape(scale)[0])
    deviation, mean = jnp.abs(frozen(scale)), frozen(bias)
    z = mean / jnp.where(deviation > 0, deviation, 1)
    log_negative = jax.scipy.special.log_ndtr(-z)
    hazard = jnp.exp(jax.scipy.stats.norm.logpdf(z) - log_negative)
    usual = log_negative > math.log(1e-3)
    margin = jnp.where(usual, mean - deviation * hazard, -3 * deviation)
    return jnp.where(deviation > 0, margin, jnp.minimum(mean, 0))


@checked()
def ofd_loss(
    student: Float[Array, "batch hs ws channels"],
    teacher: Float[Array, "batch ht wt channels"],
    margin: Float[Array, "channels"],
) -> Float[Array, "batch"]:
    """Overhaul of feature distillation: partial squared distance before the ReLU.

    Heo et al. 2019, arXiv:1904.01866: the target is max(teacher, margin), and
    a student below a target that is not positive has reached it. The sum over positions
    and channels; the authors weight stage i of L by 2^{i−L+1} and all by 0.001.

    Args:
        student: the student's maps after its connector.
        teacher: the teacher's maps from before the ReLU; the larger of the two is
            average-pooled to the size of the smaller.
        margin: the negative margin of each channel, from `ofd_margin`.

    Returns:
        The loss of each example.

    Raises:
        ValueError: channels or batches differ, or an array has the wrong shape.
    """
    _check_channels(student, teacher)
    _check_per_channel("margin", margin, jnp.shape(teacher)[-1])
    student, teacher = match_size(student, teacher)
    teacher = frozen(teacher)
    target = jnp.maximum(teacher, frozen(margin))
    counts = (student > target) | (teacher > 0)
    return _example_sum(jnp.where(counts, student - target, 0) ** 2)


@checked()
def hcl_loss(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
    sizes: tuple[int, ...] = (4, 2, 1),
) -> Float[Array, "batch"]:
    """Hierarchical context loss: mean squared difference at several resolutions.

    Chen et al. 2021 (Knowledge Review), arXiv:2104.09044, for one level:
    the full map with weight 1, then each pooled size with half the weight before it,
    over the sum of the weights.

    Args:
        student: the fused student maps (``ReviewFusion``).
        teacher: the teacher's, of the same shape.
        sizes: pooled heights and widths; those not below the map's are left out.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, or the arrays are no maps.
    """
    check_array("student", student, rank=4)
    check_same_shape(student, teacher, "features")
    # Pooling is linear: the difference of the pooled maps is the pooled difference.
    difference = as_float(student) - frozen(teacher)
    loss, weight, total = _example_mean(difference**2), 1.0, 1.0
    for size in sizes:
        if size < min(difference.shape[1:3]):
            weight /= 2
            total += weight
            pooled = adaptive_average_pool(difference, size)
            loss += weight * _example_mean(pooled**2)
    return loss / total


@checked(ratio=probability)
def mgd_mask(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    ratio: float,
    kind: Literal["spatial", "channel"] = "spatial",
) -> Float[Array, "batch height width channels"]:
    """Random mask of masked generative distillation: 1 keeps, 0 drops.

    Yang et al. 2022, arXiv:2205.01529. The paper drops positions for detection
    (ratio 0.65) and segmentation (0.75); its code drops channels for classification
    (0.15).

    Args:
        key: the source of randomness.
        shape: (batch, height, width, channels) of the maps to mask.
        ratio: the probability in [0, 1] that a position or channel is dropped.
        kind: ``"spatial"`` masks positions, ``"channel"`` channels.

    Returns:
        Zeros and ones of shape (batch, height, width, 1) or (batch, 1, 1, channels).

    Raises:
        ValueError: a bad ratio, kind or shape.
    """
    if len(shape) != 4:
        raise ValueError(f"shape must be (batch, height, width, channels), got {shape}")
    batch, height, width, channels = shape
    shapes = {"spatial": (batch, height, width, 1), "channel": (batch, 1, 1, channels)}
    if kind not in shapes:
        raise ValueError(f"kind must be one of {sorted(shapes)}, got {kind!r}")
    return jax.random.bernoulli(key, 1 - ratio, shapes[kind]).astype(jnp.float32)


@checked()
def mgd_loss(
    generated: Float[Array, "batch *features"], teacher: Float[Array, "batch *features"]
) -> Float[Array, "batch"]:
    """Masked generative distillation: summed squared difference.

    Yang et al. 2022, arXiv:2205.01529; the usual weights are 2e-5 for dense
    tasks and 7e-5 for classification.

    Args:
        generated: features made from the student's masked map
            (`jaxkd.methods.modules.projectors.MGDGenerator`).
        teacher: the teacher's, of the same shape.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, or there is no axis beside the batch.
    """
    _check_features(generated, teacher)
    return _example_sum((as_float(generated) - frozen(teacher)) ** 2)
