"""Losses on where a convolutional map is active, and on how its channels select.

Each reduces a map (batch, height, width, channels) to a normalised description that
forgets the number of channels (AT, FT), the scale of each channel (NST, CWD), or both,
and compares student and teacher. Each returns one value an example.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive
from jaxkd.losses.basics import (
    absolute,
    as_float,
    check_array,
    check_same_shape,
    frozen,
    l2_normalize,
    log_softmax,
)
from jaxkd.losses.divergences import kl_divergence
from jaxkd.losses.pooling import match_size


@checked()
def attention_map(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height*width"]:
    """Return each position's mean squared activation, normalised to a unit vector.

    Zagoruyko, Komodakis 2017, arXiv:1612.03928, Section 3.1 (F²_sum; the mean over
    channels differs from the sum by a factor that the norm takes away).
    """
    check_array("x", x, rank=4)
    energy = jnp.mean(as_float(x) ** 2, axis=-1)
    return l2_normalize(energy.reshape(energy.shape[0], -1))


@checked()
def at_loss(
    student: Float[Array, "batch hs ws cs"], teacher: Float[Array, "batch ht wt ct"]
) -> Float[Array, "batch"]:
    """Attention transfer: mean squared difference of the attention maps.

    Zagoruyko, Komodakis 2017, arXiv:1612.03928, Eq. 2 with p = 2. The mean over
    positions, and the square of the norm, are those of the common code, for which the
    usual weight of 1000 is meant.

    Args:
        student: the student's maps.
        teacher: the teacher's maps; channels may differ, and the larger of the two maps
            is average-pooled to the size of the smaller.

    Returns:
        The loss of each example.

    Raises:
        ValueError: either is no batch of maps, or the batches differ.
    """
    student, teacher = match_size(student, teacher)
    difference = attention_map(student) - attention_map(frozen(teacher))
    return jnp.mean(difference**2, axis=-1)


@checked()
def ft_loss(
    student_factor: Float[Array, "batch hs ws cs"],
    teacher_factor: Float[Array, "batch ht wt ct"],
) -> Float[Array, "batch"]:
    """Factor transfer: mean absolute difference of the factors' attention maps.

    Kim, Park, Kwak 2018, arXiv:1802.04977, with p = 1. The factors come from a
    ``Translator`` on the student's map and from the encoder of a trained
    ``Paraphraser`` on the teacher's (both in `jaxkd.methods.modules`).

    Args:
        student_factor: the translator's output.
        teacher_factor: the paraphraser's; channels may differ, and the larger of the
            two maps is average-pooled to the size of the smaller.

    Returns:
        The loss of each example.

    Raises:
        ValueError: either is no batch of maps, or the batches differ.
    """
    student, teacher = match_size(student_factor, teacher_factor)
    difference = attention_map(student) - attention_map(frozen(teacher))
    return jnp.mean(absolute(difference), axis=-1)


@checked()
def nst_loss(
    student: Float[Array, "batch hs ws cs"], teacher: Float[Array, "batch ht wt ct"]
) -> Float[Array, "batch"]:
    """Neuron selectivity transfer: squared MMD of the channels' unit maps.

    Huang, Wang 2017, arXiv:1707.01219, with the kernel k(a, b) = ⟨a, b⟩². Its
    sum over all pairs of channels is the squared norm of a product of matrices, which
    can be taken over channels or over positions: the cheaper is.

    Args:
        student: the student's maps.
        teacher: the teacher's maps; channels may differ, and the larger of the two maps
            is average-pooled to the size of the smaller.

    Returns:
        The loss of each example.

    Raises:
        ValueError: either is no batch of maps, or the batches differ.
    """

    def unit_channels(x: Array) -> Array:
        return l2_normalize(x.reshape(x.shape[0], -1, x.shape[-1]), axis=1)

    def product(form: str, a: Array, b: Array) -> Array:
        return jnp.einsum(form, a, b, precision="highest")

    student, teacher = match_size(student, teacher)
    s, t = unit_channels(student), unit_channels(frozen(teacher))
    positions, (cs, ct) = s.shape[1], (s.shape[-1], t.shape[-1])
    if positions * (cs + ct) < cs * cs + ct * ct + cs * ct:
        gram = product("bpc,bqc->bpq", s, s) / cs - product("bpc,bqc->bpq", t, t) / ct
        return jnp.sum(gram**2, axis=(1, 2))

    def kernel(a: Array, b: Array) -> Array:
        return jnp.mean(product("bpc,bpd->bcd", a, b) ** 2, axis=(1, 2))

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


@checked(temperature=positive)
def cwd_loss(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
    temperature: float = 4.0,
) -> Float[Array, "batch"]:
    """Channel-wise distillation: T²·KL of each channel's softmax over positions.

    Shu et al. 2021, arXiv:2011.13256; the mean over channels, of which those at −∞
    everywhere (a class of dense logits that no one may choose) are none.

    Args:
        student: the student's maps or dense logits.
        teacher: the teacher's, of the same shape.
        temperature: T > 0.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, the arrays are no maps, or T is not above 0.
    """
    check_array("student", student, rank=4)
    check_same_shape(student, teacher, "features")

    def log_distribution(x: Array) -> Array:
        channels_first = jnp.moveaxis(x, -1, 1).reshape(x.shape[0], x.shape[-1], -1)
        return log_softmax(channels_first, temperature)

    log_s, log_t = (
        log_distribution(as_float(student)),
        log_distribution(frozen(teacher)),
    )
    exists = ~(jnp.isneginf(log_s) & jnp.isneginf(log_t)).all(-1)
    total = kl_divergence(log_t, log_s).sum(-1) / jnp.maximum(exists.sum(-1), 1)
    return temperature**2 * total
