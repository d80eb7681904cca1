"""What every loss needs: float32 arithmetic, argument checks and weighted means."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.types import Loss

EPS = 1e-12
"""Floor of norms, as in PyTorch's ``normalize``."""

OTHER_WIDTHS = (
    "give both networks the same classes, or distil features instead; for language "
    "models with one tokenizer, whose logits are padded differently, take "
    "methods.shared_vocabulary(method, size) with the size that "
    "data.check_vocabularies returns, and methods.aligned_kd() for two tokenizers"
)
"""What to do about logits of two widths."""


def as_float(x: Array) -> Array:
    """Return ``x`` in float32, or as it is where it is wider."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def frozen(x: Array) -> Array:
    """Return ``x`` in float32 with no gradient: the teacher's side of a loss."""
    return jax.lax.stop_gradient(as_float(x))


def log_softmax(
    logits: Float[Array, "*batch classes"], temperature: float | Array = 1.0
) -> Float[Array, "*batch classes"]:
    """Return log softmax(z/T), in which a class at −∞ stays there without gradient.

    As `jax.nn.log_softmax`, but for a gradient by T that is finite beside such classes,
    and rows that hold no other, whose gradient is 0 instead of NaN.

    Args:
        logits: z, in float32 or wider.
        temperature: T > 0.
    """
    exists = ~jnp.isneginf(logits)
    return jax.nn.log_softmax(jnp.where(exists, logits, 0) / temperature, where=exists)


@checked()
def logsumexp(x: Array, axis: int = -1) -> Array:
    """Return log Σ exp(x), with gradient 0 instead of NaN where all x are −∞."""
    none = jnp.isneginf(x).all(axis)
    total = jax.nn.logsumexp(jnp.where(jnp.expand_dims(none, axis), 0, x), axis)
    return jnp.where(none, -jnp.inf, total)


def absolute(x: Array) -> Array:
    """Return abs(x) with slope 0 at 0, as in PyTorch; that of `jnp.abs` is 1 there."""
    return x * jnp.sign(x)


@checked()
def check_array(name: str, x: Array | None, rank: int | None = None) -> None:
    """Refuse an array that is absent or has the wrong number of axes.

    Raises:
        ValueError: it names the argument, what was given and what to do.
    """
    if x is None:
        raise ValueError(
            f"{name} is None: this loss compares with a teacher, so pass one to "
            "distill(), or use a method that needs none, such as cross_entropy()"
        )
    if rank is not None and jnp.ndim(x) != rank:
        raise ValueError(
            f"{name} must have {rank} axes, got shape {jnp.shape(x)}: tap a layer "
            "whose output has that many, or reshape it"
        )


@checked()
def check_same_shape(student: Array, teacher: Any, what: str) -> None:
    """Refuse student and teacher arrays whose shapes differ.

    Args:
        student: the student's array.
        teacher: the teacher's array.
        what: the arguments' common name, such as ``"logits"``.

    Raises:
        ValueError: it names both arguments, both shapes and the remedy.
    """
    check_array(f"teacher_{what}", teacher)
    if jnp.shape(student) != jnp.shape(teacher):
        if what != "logits":
            remedy = (
                "project the student's with a method such as fitnets(), or tap layers "
                "whose shapes agree"
            )
        elif jnp.shape(student)[-1:] == jnp.shape(teacher)[-1:]:
            remedy = "run both networks on the same examples and tokens"
        else:
            remedy = OTHER_WIDTHS
        raise ValueError(
            f"student_{what} has shape {jnp.shape(student)} but teacher_{what} has "
            f"shape {jnp.shape(teacher)}: {remedy}"
        )


@checked()
def check_same_batch(student: Array, teacher: Any, what: str) -> None:
    """Refuse student and teacher arrays of different batch sizes, or of one example.

    Raises:
        ValueError: it names both arguments, both shapes and the remedy.
    """
    check_array(f"teacher_{what}", teacher)
    sizes = jnp.shape(student)[0], jnp.shape(teacher)[0]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"student_{what} holds {sizes[0]} examples but teacher_{what} holds "
            f"{sizes[1]}: run both networks on the same batch"
        )
    if sizes[0] < 2:
        raise ValueError(
            f"student_{what} holds {sizes[0]} example: relations between examples "
            "need at least 2, so use a larger batch"
        )


@checked()
def check_positive(name: str, value: float | Array) -> None:
    """Refuse a number known at trace time that is not above 0.

    Raises:
        ValueError: it names the argument and the value.
    """
    # NumPy, since under jit even a comparison of jnp constants would be traced.
    if not isinstance(value, Tracer) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name} must be above 0, got {value}")


def check_class_indices(labels: Any) -> None:
    """Refuse labels that are probabilities, as Mixup and CutMix make them.

    Raises:
        ValueError: it names the dtype and the remedy.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels is {labels.dtype} of shape {labels.shape}, but this loss needs "
            "class indices: leave Mixup and CutMix out, or use cross_entropy() and kd()"
        )


@checked()
def expand_weights(weights: Array, shape: tuple[int, ...]) -> Array:
    """Return ``weights``, given over the leading axes of ``shape``, over all of it.

    Raises:
        ValueError: they do not fit; it names both shapes and the remedy.
    """
    weights = as_float(weights)
    if weights.shape != shape[: weights.ndim]:
        raise ValueError(
            f"weights has shape {weights.shape} but the values it weighs have shape "
            f"{shape}: give one weight an example (or a token)"
        )
    trailing = (1,) * (len(shape) - weights.ndim)
    return jnp.broadcast_to(weights.reshape(weights.shape + trailing), shape)


def zero_masked(x: Array, weights: Array | None) -> Array:
    """Return ``x`` with 0 wherever the weight is 0, whatever was there (NaN too).

    A loss over pairs of examples calls it first: a NaN that is left out only of the
    last sum still makes the gradient NaN.
    """
    if weights is None:
        return x
    return jnp.where(expand_weights(weights, x.shape) > 0, x, 0)


def weighted_loss(values: Array, weights: Array | None = None) -> Loss:
    """Return Σ weight·value and Σ weight of ``values``, not divided yet.

    Args:
        values: (batch, ...), one loss an example, token or pair.
        weights: the shape of ``values``, or of its leading axes; None counts all once.
    """
    values = as_float(values)
    if weights is None:
        return Loss(values.sum(), jnp.full((), values.size, values.dtype))
    weights = expand_weights(weights, values.shape)
    # A masked example may hold anything, NaN too: it must not reach the sum.
    total = jnp.where(weights > 0, values * weights, 0).sum()
    # A negative one, left out above, makes the weight NaN, and so the loss.
    return Loss(total, jnp.where((weights >= 0).all(), weights.sum(), jnp.nan))


def weighted_mean(values: Array, weights: Array | None = None) -> Float[Array, ""]:
    """Return the mean of ``values``, each counted ``weights`` times; 0 if none counts.

    Args:
        values: (batch, ...), one loss an example, token or pair.
        weights: the shape of ``values``, or of its leading axes; None counts all once.
    """
    return (
        as_float(values).mean()
        if weights is None
        else weighted_loss(values, weights).value
    )


@checked()
def pair_weights(weights: Array | None, batch: int) -> Float[Array, "batch batch"]:
    """Return the weight of every pair of examples: the product of theirs."""
    weights = jnp.ones(batch) if weights is None else as_float(weights)
    return weights[:, None] * weights[None, :]


@checked()
def l2_normalize(x: Array, axis: int = -1) -> Array:
    """Return ``x`` over its Euclidean norm; a zero vector stays zero, gradient too."""
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    small = square <= EPS**2
    return jnp.where(small, 0, x * jax.lax.rsqrt(jnp.where(small, 1, square)))
