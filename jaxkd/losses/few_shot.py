"""Classifiers by cosine similarity with class prototypes, and how few labels tune them.

A vision-language model classifies an image by the cosine of its embedding with those of
texts that name the classes. These text embeddings are the prototypes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked
from jaxkd.checks import check_labels
from jaxkd.losses.basics import (
    as_float,
    check_class_indices,
    check_positive,
    frozen,
    l2_normalize,
    weighted_mean,
    zero_masked,
)
from jaxkd.losses.divergences import cross_entropy_loss


@checked()
def cosine_logits(
    features: Float[Array, "*batch features"],
    prototypes: Float[Array, "features classes"],
    scale: float = 100.0,
) -> Float[Array, "*batch classes"]:
    """Logits of a zero-shot classifier: scale · cos(feature, prototype).

    Radford et al. 2021, arXiv:2103.00020, Section 3.1. Neither side need be normalised;
    a zero vector has logits 0.

    Args:
        features: embeddings of the images.
        prototypes: a column for each class, such as the mean embedding of its prompts.
        scale: the inverse of the temperature; CLIP's is 100.

    Raises:
        ValueError: the number of features differs, or the scale is not above 0.
    """
    check_positive("scale", scale)
    if jnp.shape(features)[-1] != jnp.shape(prototypes)[0]:
        raise ValueError(
            f"features has shape {jnp.shape(features)} but prototypes has shape "
            f"{jnp.shape(prototypes)}: give prototypes one column a class, with as "
            "many rows as an embedding has values"
        )
    directions = l2_normalize(as_float(prototypes), axis=0)
    return scale * l2_normalize(as_float(features)) @ directions


@checked()
def tip_adapter_logits(
    features: Float[Array, "*batch features"],
    prototypes: Float[Array, "features classes"],
    keys: Float[Array, "examples features"],
    values: Float[Array, "examples classes"],
    alpha: float = 1.0,
    beta: float = 5.5,
    scale: float = 100.0,
) -> Float[Array, "*batch classes"]:
    """Logits of a zero-shot classifier and of a cache of labelled images: Tip-Adapter.

    scale·cos(f, w_c) + α·Σ_m exp(−β(1 − f·k_m))·v_mc for f of length 1. Zhang et al.
    2022, arXiv:2207.09519. An image like one in the cache gets more of its class; with
    α = 0 the cache counts nothing.

    Args:
        features: embeddings of the images, normalised here.
        prototypes: a column for each class, as `cosine_logits` takes them.
        keys: k, embeddings of the labelled images of length 1; Tip-Adapter-F trains
            them, see `selection.fit_tip_adapter`.
        values: v, their labels as rows of the identity.
        alpha: α, the cache's weight.
        beta: β; the larger, the fewer images of the cache an image is compared with.
        scale: of the cosines with the prototypes.

    Raises:
        ValueError: shapes do not fit, or the scale is not above 0.
    """
    (width, classes), count = jnp.shape(prototypes), len(keys)
    for name, array, wanted in (
        ("keys", keys, (count, width)),
        ("values", values, (count, classes)),
    ):
        if jnp.shape(array) != wanted:
            raise ValueError(
                f"{name} has shape {jnp.shape(array)}, but {count} labelled images and "
                f"prototypes of shape {(width, classes)} need {wanted}: give one row "
                "an image"
            )
    zero_shot = cosine_logits(features, prototypes, scale)
    likeness = l2_normalize(as_float(features)) @ as_float(keys).T
    return zero_shot + alpha * jnp.exp(beta * (likeness - 1)) @ as_float(values)


@checked()
def clap_class_weights(
    zero_shot_logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Float[Array, "classes"]:
    """How much CLAP trusts each class's zero-shot prototype: a_c.

    The mean zero-shot probability of the true class over the labelled examples of the
    class, 0 where it has none (Silva-Rodríguez et al. 2023, arXiv:2312.12730, Eq. 8;
    a_c stays fixed, as in ActiveKD, Kang et al. 2025, arXiv:2506.00910).

    Args:
        zero_shot_logits: of the labelled examples.
        labels: their classes.

    Raises:
        ValueError: labels are no classes.
    """
    check_class_indices(labels)
    p = jax.nn.softmax(frozen(zero_shot_logits))
    check_labels("labels", labels, p.shape[-1])
    of_class = jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    count = of_class.sum(0)
    return jnp.sum(p * of_class, axis=0) / jnp.where(count > 0, count, 1)


@checked()
def clap_loss(
    prototypes: Float[Array, "features classes"],
    zero_shot_prototypes: Float[Array, "features classes"],
    features: Float[Array, "batch features"],
    labels: Int[Array, "batch"],
    class_weights: Float[Array, "classes"],
    scale: float = 100.0,
    weights: Float[Array, "batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Class-adaptive linear probe: CE + (1/C)·Σ_c a_c·‖w_c − w_c⁰‖².

    Silva-Rodríguez et al. 2023, arXiv:2312.12730, as ActiveKD trains its few-shot
    teacher (Kang et al. 2025, arXiv:2506.00910): a class keeps near its zero-shot
    prototype as far as that one classifies it well. The penalty is on the prototypes as
    they are, not on their directions.

    Args:
        prototypes: w, trained.
        zero_shot_prototypes: w⁰, where they start.
        features: embeddings of labelled images.
        labels: their classes.
        class_weights: a_c, from `clap_class_weights`.
        scale: of the cosines.
        weights: one an example, of the cross-entropy.

    Returns:
        The loss, and its parts ``ce`` and ``constraint``.

    Raises:
        ValueError: shapes do not fit, or the scale is not above 0.
    """
    if jnp.shape(prototypes) != jnp.shape(zero_shot_prototypes):
        raise ValueError(
            f"prototypes has shape {jnp.shape(prototypes)} but zero_shot_prototypes "
            f"{jnp.shape(zero_shot_prototypes)}: both hold a column for each class"
        )
    logits = cosine_logits(zero_masked(features, weights), prototypes, scale)
    moved = as_float(prototypes) - frozen(zero_shot_prototypes)
    constraint = jnp.mean(frozen(class_weights) * jnp.sum(moved**2, axis=0))
    ce = weighted_mean(cross_entropy_loss(logits, labels), weights)
    return ce + constraint, {"ce": ce, "constraint": constraint}
