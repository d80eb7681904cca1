"""Norm and direction: features pulled towards their class's mean in the teacher.

A teacher's class means are a classifier by themselves; a student's feature that points
to its class's mean, and is long, is classified well without matching the teacher's
feature of the same example.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked
from jaxkd.losses.basics import EPS, as_float, check_class_indices, frozen, l2_normalize


@checked()
def class_sums(
    features: Float[Array, "batch channels"],
    labels: Int[Array, "batch"],
    classes: int,
    weights: Float[Array, "batch"] | None = None,
) -> tuple[Float[Array, "classes channels"], Float[Array, "classes"]]:
    """Return each class's sum of features and its weight; both add up over batches.

    Args:
        features: of the examples.
        labels: class indices; an example of another label counts nowhere.
        classes: their number.
        weights: one an example; None for 1.
    """
    weights = jnp.ones(len(labels)) if weights is None else as_float(weights)
    shares = jax.nn.one_hot(labels, classes) * weights[:, None]
    counted = jnp.where(weights[:, None] > 0, as_float(features), 0)
    return shares.T @ counted, shares.sum(0)


@checked()
def class_means(
    sums: Float[Array, "classes channels"], counts: Float[Array, "classes"]
) -> Float[Array, "classes channels"]:
    """Return each class's mean feature; a class without examples has 0.

    A mean of 0 has no direction: `nd_loss` is 0 for its examples.

    Args:
        sums: of features, from `class_sums`.
        counts: weights of the classes.
    """
    return sums / jnp.where(counts > 0, counts, 1)[:, None]


@checked()
def nd_loss(
    student: Float[Array, "batch channels"],
    teacher: Float[Array, "batch teacher_channels"],
    means: Float[Array, "classes mean_channels"],
    labels: Int[Array, "batch"],
) -> Float[Array, "batch"]:
    """Norm and direction at once: 1 − ⟨f_s, e_y⟩ / max(‖f_s‖, ‖f_t‖).

    Wang et al. 2023, arXiv:2305.17007. e_y is the direction of the class's mean. A
    student's feature that is shorter than the teacher's is pushed along e_y, longer and
    straighter; one that is longer has the gradient of 1 − cos alone.

    Args:
        student: f_s, of the layer before the classifier.
        teacher: f_t, of which only the norm is read.
        means: of the teacher's features by class, as `class_means` returns them.
        labels: y, class indices.

    Returns:
        One loss an example, in [0, 2]; 0 where the class's mean is 0.

    Raises:
        ValueError: the widths differ, or labels are no class indices; under jit, where
            values cannot be checked, a label out of range gives NaN.
    """
    directions = _directions(student, means, labels)
    if teacher.shape != student.shape:
        raise ValueError(
            f"student's features have shape {student.shape} and the teacher's "
            f"{teacher.shape}: project the student's to the teacher's width first, as "
            "jaxkd.methods.nd does"
        )
    student, teacher = as_float(student), frozen(as_float(teacher))
    length, other = (optax.safe_norm(x, 0.0, axis=-1) for x in (student, teacher))
    # Where both are as long, the student's counts, and its gradient.
    longest = jnp.where(length >= other, length, other)
    cosine = (student * directions).sum(-1) / jnp.maximum(longest, EPS)
    return jnp.where((directions == 0).all(-1), 0, 1 - cosine)


@checked()
def direction_loss(
    student: Float[Array, "batch channels"],
    means: Float[Array, "classes mean_channels"],
    labels: Int[Array, "batch"],
) -> Float[Array, "batch"]:
    """Direction alone: 1 − cos(f_s, e_y), an ablation of `nd_loss`.

    Args:
        student: f_s.
        means: as in `nd_loss`.
        labels: y, class indices.

    Raises:
        ValueError: as in `nd_loss`.
    """
    directions = _directions(student, means, labels)
    cosine = (l2_normalize(as_float(student)) * directions).sum(-1)
    return jnp.where((directions == 0).all(-1), 0, 1 - cosine)


@checked()
def norm_loss(
    student: Float[Array, "batch channels"], step: float = 1.0
) -> Float[Array, "batch"]:
    """Norm alone: (‖f_s‖ − (sg ‖f_s‖ + r))², which lengthens features by steps.

    Its value is r² whatever the features; only its gradient, −2r along f_s, says
    anything. Xu et al. 2019, arXiv:1811.07456; an ablation of `nd_loss`.

    Args:
        student: f_s.
        step: r.
    """
    length = optax.safe_norm(as_float(student), 0.0, axis=-1)
    return jnp.square(length - (frozen(length) + step))


@checked()
def feature_alignment(
    features: Float[Array, "batch channels"],
    means: Float[Array, "classes mean_channels"],
    labels: Int[Array, "batch"],
) -> dict[str, Float[Array, "batch"]]:
    """Return each example's ``cosine`` with its class's mean, and its ``norm``.

    Args:
        features: of a student.
        means: as in `nd_loss`.
        labels: class indices.

    Raises:
        ValueError: as in `nd_loss`.
    """
    cosine = 1 - direction_loss(features, means, labels)
    return {"cosine": cosine, "norm": optax.safe_norm(as_float(features), 0.0, axis=-1)}


def _directions(student: Array, means: Array, labels: Array) -> Array:
    if jnp.ndim(student) != 2 or jnp.shape(means)[1:] != student.shape[1:]:
        raise ValueError(
            f"student's features have shape {jnp.shape(student)} and means "
            f"{jnp.shape(means)}: give (examples, channels) and (classes, channels)"
        )
    check_class_indices(labels)
    if not isinstance(labels, Tracer) and not _inside(labels, len(means)):
        raise ValueError(
            f"labels must be 0 to {len(means) - 1}, the classes that means has; got "
            f"{int(np.min(labels))} to {int(np.max(labels))}"
        )
    directions = l2_normalize(frozen(as_float(means)))
    chosen = directions.at[labels].get(mode="fill", fill_value=jnp.nan)
    return jnp.where(labels[:, None] < 0, jnp.nan, chosen)


def _inside(labels: Array, classes: int) -> bool:
    values = np.asarray(labels)
    return bool(((values >= 0) & (values < classes)).all())
