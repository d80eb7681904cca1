"""Directions in which a teacher's features vary inside a class.

They are found once, before training, of the training examples' features in evaluation
mode (`jaxkd.evaluation.features.tapped`), in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count
from jaxkd.losses.directions import class_means, class_sums
from jaxkd.losses.subclasses import SubclassDirections

Numbers = np.ndarray | Array

RANK = 1e-10
"""A direction whose share of the largest variance is below it is rounding."""


def null_space_projector(
    kernel: Float[Numbers, "channels classes"],
) -> Float[np.ndarray, "channels channels"]:
    """Return P = I − W⁺W, which takes out what the last layer W reads.

    Args:
        kernel: Wᵀ, the last layer's weights as Flax has them.

    Raises:
        ValueError: the kernel is no matrix.
    """
    if jnp.ndim(kernel) != 2:
        raise ValueError(
            f"kernel has shape {jnp.shape(kernel)}: give the last linear layer's, "
            "(channels, classes)"
        )
    bases, sizes, _ = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
    read = bases[:, sizes > 1e-6 * sizes.max()]
    return np.eye(len(read)) - read @ read.T


@checked(classes=count, subclasses=count)
def class_pca(
    features: Float[Numbers, "examples channels"],
    labels: Int[Numbers, "examples"],
    classes: int,
    subclasses: int,
    projector: Float[Numbers, "channels channels"] | None = None,
) -> tuple[
    Float[np.ndarray, "classes channels"],
    Float[np.ndarray, "classes channels subclasses"],
    Float[np.ndarray, "classes subclasses"],
]:
    """Return each class's mean, first principal directions, and deviations along them.

    Args:
        features: of the examples.
        labels: class indices.
        classes: their number.
        subclasses: directions of each class.
        projector: P, that features are multiplied by first; None for none.

    Returns:
        The means, of the projected features; orthonormal directions, largest variance
        first, each with its largest entry above 0; standard deviations.

    Raises:
        ValueError: a class has too few examples, or varies in fewer directions.
    """
    h, labels = np.asarray(features, np.float64), np.asarray(labels)
    if projector is not None:
        h = h @ np.asarray(projector)
    sums = class_sums(jnp.asarray(h), jnp.asarray(labels), classes)
    means = np.asarray(class_means(*sums), np.float64)
    directions, deviations = [], []
    for c, mean in enumerate(means):
        centred = h[labels == c] - mean
        if len(centred) <= subclasses:
            raise ValueError(
                f"class {c} has {len(centred)} examples: {subclasses} sub-classes need "
                f"at least {subclasses + 1}, so give more or ask for fewer"
            )
        variances, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
        rank = int((variances > RANK * variances.max()).sum())
        if subclasses > rank:
            raise ValueError(
                f"subclasses must be at most {rank}, the directions in which class "
                f"{c}'s features vary beyond what projector leaves, got {subclasses}"
            )
        vectors = vectors[:, ::-1][:, :subclasses]
        largest = np.abs(vectors).argmax(0)
        directions.append(vectors * np.sign(vectors[largest, range(subclasses)]))
        deviations.append(np.sqrt(variances[::-1][:subclasses]))
    return means, np.stack(directions), np.stack(deviations)


@checked(classes=count, subclasses=count)
def subclass_directions(
    features: Float[Numbers, "examples channels"],
    labels: Int[Numbers, "examples"],
    classes: int,
    subclasses: int,
    key: PRNGKeyArray,
    *,
    kernel: Float[Numbers, "rows columns"] | None = None,
    rotate: bool = True,
    normalize: bool = True,
) -> SubclassDirections:
    """Return what `jaxkd.methods.lelp` divides each class's probability by.

    Loo et al. 2024, arXiv:2409.20449. Of a class c with principal directions V_c and
    variances λ_c, U_c = V_c Q_c / s_c: a random rotation Q_c spreads the variance over
    all kinds, and s_c² = mean λ_c gives β one meaning for all teachers.

    Args:
        features: the inputs of the teacher's last layer, of training examples.
        labels: class indices; where there are none, the teacher's choices.
        classes: their number.
        subclasses: S, of each class.
        key: of the rotations.
        kernel: the last layer's weights, to leave out what they read; None to leave
            out nothing.
        rotate: whether to rotate.
        normalize: whether to divide by s_c.

    Raises:
        ValueError: as `class_pca`, or the kernel is not of the features' channels.
    """
    projector = None
    if kernel is not None:
        if len(kernel) != np.shape(features)[1]:
            raise ValueError(
                f"kernel has shape {jnp.shape(kernel)}, but features have "
                f"{np.shape(features)[1]} channels: give the layer that reads them"
            )
        projector = null_space_projector(kernel)
    means, directions, deviations = class_pca(
        features, labels, classes, subclasses, projector
    )
    if rotate:
        directions = directions @ np.asarray(
            jax.random.orthogonal(key, subclasses, (classes,))
        )
    if normalize:
        directions /= np.sqrt(np.square(deviations).mean(1))[:, None, None]
    # The directions have no part in what P takes out, so features need not go through
    # P again.
    return SubclassDirections(
        jnp.asarray(means, jnp.float32), jnp.asarray(directions, jnp.float32)
    )
