"""Blending the teacher's and the labels' losses with a ratio α of each example's own.

α weighs the teacher: 0 trains on the labels alone, 1 on the teacher alone. It comes
from a rule (`wls_alpha`, `ada_alpha`), or is learnt from where student, teacher and
label lie to one another (`trilateral_features`; Hu et al. 2024, arXiv:2312.15112).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, positive, probability
from jaxkd.checks import check_labels, unknown_name
from jaxkd.losses.basics import as_float, check_class_indices, frozen, log_softmax
from jaxkd.losses.divergences import cross_entropy_loss, kd_loss

VERTICES = "STGA"
"""Student, teacher, ground truth, and the teacher's average for the class."""

GEOMETRY = ("S", "T", "G", "A", "SA", "SG", "ST", "TG", "AG")
"""The vertices and edges of both triangles, in the authors' order."""


@checked()
def class_average_predictions(
    teacher_probabilities: Float[Array, "examples classes"],
    labels: Int[Array, "examples"],
) -> Float[Array, "classes classes"]:
    """Return the teacher's average prediction for the examples of each class.

    Hu et al. 2024, arXiv:2312.15112, the inter-sample vertex, from the training set.

    Args:
        teacher_probabilities: softmax of the teacher's logits at temperature 1.
        labels: class indices.

    Returns:
        One row a class; the uniform distribution for a class without examples.

    Raises:
        ValueError: labels that are no classes.
    """
    check_class_indices(labels)
    p = as_float(teacher_probabilities)
    check_labels("labels", labels, p.shape[-1])
    classes = p.shape[-1]
    members = jax.nn.one_hot(labels, classes, dtype=p.dtype)
    count = members.sum(0)[:, None]
    total = jnp.einsum("nk,nc->kc", members, p, precision="highest")
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 1 / classes)


@checked()
def trilateral_features(
    student_probabilities: Float[Array, "batch classes"],
    teacher_probabilities: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    class_average: Float[Array, "classes classes"],
    parts: Sequence[str] = GEOMETRY,
    per_class: bool = True,
) -> Float[Array, "batch features"]:
    """Return the geometry of student, teacher and label in probability space.

    Hu et al. 2024, arXiv:2312.15112. A part of one letter is a vertex: S student,
    T teacher, G ground truth (one-hot), A the teacher's average for the label's class.
    Two letters are an edge, the squared differences of its ends. Two edges with a dot,
    ``"SA.SG"``, are an angle, the products of their differences, both taken from the
    first letter to the second.

    Args:
        student_probabilities: at temperature 1; detach them if only α is to be learnt.
        teacher_probabilities: likewise.
        labels: class indices.
        class_average: from `class_average_predictions`.
        parts: what to return, in this order.
        per_class: one number a class for each part, as the authors have it. False sums
            them, for many classes: an edge is its squared length, an angle an inner
            product, and a vertex its probabilities of the label and of its top class.

    Raises:
        ValueError: an unknown part, none, shapes that differ, or labels that are no
            class indices.
    """
    check_class_indices(labels)
    shapes = [
        jnp.shape(x)
        for x in (student_probabilities, teacher_probabilities, class_average)
    ]
    classes = shapes[0][-1]
    if shapes[0] != shapes[1] or shapes[2] != (classes, classes):
        raise ValueError(
            f"student_probabilities has shape {shapes[0]}, teacher_probabilities "
            f"{shapes[1]} and class_average {shapes[2]}: the first two must be (batch, "
            "classes) and the last (classes, classes)"
        )
    _check_parts(parts)
    vertices = {
        "S": as_float(student_probabilities),
        "T": as_float(teacher_probabilities),
        "G": jax.nn.one_hot(labels, classes),
        "A": as_float(class_average)[labels],
    }

    def difference(edge: str) -> Array:
        return vertices[edge[1]] - vertices[edge[0]]

    def feature(part: str) -> Array:
        if len(part) == 1:
            x = vertices[part]
            if per_class:
                return x
            label = jnp.take_along_axis(x, labels[:, None], axis=-1)
            return jnp.concatenate([label, x.max(-1, keepdims=True)], axis=-1)
        first, _, second = part.partition(".")
        x = difference(first) * difference(second or first)
        return x if per_class else x.sum(-1, keepdims=True)

    return jnp.concatenate([feature(part) for part in parts], axis=-1)


def _check_parts(parts: Sequence[str]) -> None:
    if isinstance(parts, str) or not parts:
        raise ValueError(
            f"parts must be a sequence of at least one part, got {parts!r}"
        )
    for part in parts:
        edges = part.split(".")
        vertex = len(part) == 1 and part in VERTICES
        edge = len(edges) <= 2 and all(
            len(e) == 2 and e[0] != e[1] and set(e) <= set(VERTICES) for e in edges
        )
        if not (vertex or edge):
            raise ValueError(
                unknown_name("part", part, [*GEOMETRY, "SA.SG", "ST.SG"])
                + f", and other pairs of the vertices {', '.join(VERTICES)}"
            )


@checked(temperature=positive, alpha=probability)
def fused_kd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    alpha: float | Float[Array, "*#batch"],
    temperature: float = 4.0,
) -> Float[Array, "*batch"]:
    """Blend of both losses: α·T²·KL(p_t ‖ p_s) at temperature T + (1 − α)·CE.

    Hu et al. 2024, arXiv:2312.15112, the student's loss. α may differ from example to
    example, and gets a gradient.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        labels: the target classes.
        alpha: α in [0, 1], one an example or one for all.
        temperature: T > 0.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, T is not above 0, or α, where its value is known, is
            outside [0, 1].
    """
    if not isinstance(alpha, Tracer):
        outside = (np.asarray(alpha) < 0) | (np.asarray(alpha) > 1)
        if outside.any():
            raise ValueError(
                f"alpha must be in [0, 1], the teacher's share of the loss, got "
                f"{np.asarray(alpha)[outside].ravel()[0]}"
            )
    alpha = as_float(jnp.asarray(alpha))
    taught = kd_loss(student_logits, teacher_logits, temperature)
    return alpha * taught + (1 - alpha) * cross_entropy_loss(student_logits, labels)


@checked(temperature=positive, alpha_label=probability)
def weighted_kd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    weights: Float[Array, "*batch"],
    temperature: float = 7.0,
    alpha_label: float = 0.0,
    *,
    scale: bool = False,
) -> Float[Array, "*batch"]:
    """Distillation loss of each example, times a weight of its own.

    w·[(1 − a)·KL(p_t ‖ p_s) + a·CE] at temperature T, as in KD-AIF (Wu et al. 2025,
    arXiv:2501.02705), whose code has a = 0 and no factor T².

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        labels: the target classes.
        weights: w, such as `selection.influence_weights`.
        temperature: T > 0.
        alpha_label: a in [0, 1].
        scale: whether the divergence is multiplied by T².

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, T is not above 0, a is outside [0, 1], or a weight,
            where its value is known, is below 0.
    """
    if jnp.shape(weights) != jnp.shape(student_logits)[:-1]:
        raise ValueError(
            f"weights has shape {jnp.shape(weights)} but student_logits has "
            f"{jnp.shape(student_logits)}: give one weight an example"
        )
    if not isinstance(weights, Tracer) and (np.asarray(weights) < 0).any():
        raise ValueError(
            f"weights must be at least 0, got {np.asarray(weights).min()}: of scores "
            "that may be negative, make weights by selection.influence_weights"
        )
    taught = kd_loss(student_logits, teacher_logits, temperature)
    taught = taught if scale else taught / temperature**2
    own = cross_entropy_loss(student_logits, labels)
    return as_float(weights) * ((1 - alpha_label) * taught + alpha_label * own)


@checked()
def wls_alpha(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Weighted soft labels: α = 1 − exp(−CE_s / CE_t), without gradient.

    Zhou et al. 2021, arXiv:2102.00650, as Hu et al. 2024, arXiv:2312.15112, put it in
    `fused_kd_loss` (in the paper it multiplies the KL beside a whole cross-entropy).
    It is 1 where the teacher is certain of the label.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        labels: the target classes.
    """
    student = cross_entropy_loss(frozen(student_logits), labels)
    teacher = cross_entropy_loss(frozen(teacher_logits), labels)
    ratio = student / jnp.where(teacher > 0, teacher, 1)
    return jnp.where(teacher > 0, -jnp.expm1(-ratio), 1)


@checked()
def ada_alpha(
    teacher_logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Teacher's margin: α = max(0, p_t of the label − mean p_t of the other classes).

    Lukasik et al. 2021, arXiv:2106.10494 (who average it over a class), example by
    example as Hu et al. 2024, arXiv:2312.15112, compare with it; without gradient.
    Classes at −∞ are not counted.

    Args:
        teacher_logits: z_t.
        labels: the target classes.

    Raises:
        ValueError: fewer than 2 classes, or labels that are no class indices.
    """
    check_class_indices(labels)
    log_p = log_softmax(frozen(teacher_logits))
    if log_p.shape[-1] < 2:
        raise ValueError(
            f"teacher_logits has {log_p.shape[-1]} class: a margin needs 2 or more"
        )
    p, others = jnp.exp(log_p), (log_p > -jnp.inf).sum(-1) - 1
    label = jnp.take_along_axis(p, jnp.asarray(labels)[..., None], axis=-1)[..., 0]
    return jnp.maximum(0, label - (1 - label) / jnp.maximum(others, 1))
