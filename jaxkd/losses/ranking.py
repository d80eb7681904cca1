"""Losses on the order of the classes, read as a choice of one class after another.

The Plackett-Luce model takes logits as worths: of the classes still left, each is
chosen next with its softmax probability among them. Cross-entropy is the first choice
alone. All compute in float32 and return one value an example.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, positive
from jaxkd.kernels.linear_distill.divergences import times
from jaxkd.losses.basics import (
    as_float,
    check_class_indices,
    check_same_shape,
    frozen,
    log_softmax,
)


@checked()
def teacher_ranking(
    teacher_logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Int[Array, "*batch classes"]:
    """Return the classes best first: the label, then the others by falling logit.

    Bassam, Zhu, Bian 2025, arXiv:2506.12542, the teacher-optimal permutation π*. Of
    equal logits, sorted in float32, the class of lower index goes first.

    Args:
        teacher_logits: z_t.
        labels: the true classes, whatever the teacher thinks of them.

    Raises:
        ValueError: labels that are no class indices, or of another shape.
    """
    check_class_indices(labels)
    if jnp.shape(labels) != jnp.shape(teacher_logits)[:-1]:
        raise ValueError(
            f"labels has shape {jnp.shape(labels)} but teacher_logits has "
            f"{jnp.shape(teacher_logits)}: give one label an example"
        )
    logits = frozen(teacher_logits)
    first = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.argsort(jnp.where(first, -jnp.inf, -logits), axis=-1, stable=True)


@checked()
def plackett_luce_loss(
    logits: Float[Array, "*batch classes"],
    ranking: Int[Array, "*batch classes"],
    weights: Float[Array, "*batch classes"],
) -> Float[Array, "*batch"]:
    """Weighted negative log-likelihood of a ranking under the Plackett-Luce model.

    Σ_k w_k · [logsumexp(z of the places from k on) − z of place k]. Weights (1, 0, …)
    make it the cross-entropy with the first class, equal weights ListMLE (Xia et al.
    2008). It is convex in the logits, its gradient sums to 0 over the classes, and it
    does not change when a constant is added to the logits. A class at −∞ is never
    chosen: in a place of weight 0 it adds nothing.

    Args:
        logits: z, of the student.
        ranking: class indices, best first.
        weights: w ≥ 0 of each place, best first.

    Raises:
        ValueError: shapes differ.
    """
    for name, given in (("ranking", ranking), ("weights", weights)):
        if jnp.shape(given) != jnp.shape(logits):
            raise ValueError(
                f"{name} has shape {jnp.shape(given)} but logits has "
                f"{jnp.shape(logits)}: give one value a class"
            )
    placed = jnp.take_along_axis(as_float(logits), ranking, axis=-1)
    # Sums of −∞ alone would have the gradient NaN.
    finite = jnp.maximum(placed, jnp.finfo(placed.dtype).min)
    remaining = jax.lax.cumlogsumexp(finite, axis=placed.ndim - 1, reverse=True)
    return times(weights, remaining - placed).sum(-1)


@checked(temperature=positive)
def pld_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    """Plackett-Luce distillation: one ranking, weighted by the teacher.

    Bassam, Zhu, Bian 2025, arXiv:2506.12542, Appendix C. The ranking is
    `teacher_ranking`, the weight of a place the teacher's probability of its class at
    temperature T. The student's logits are not tempered and there is no T². It holds a
    cross-entropy term (the first place, weighted by the teacher's probability of the
    label), so it needs none beside it. It is not 0 where student and teacher agree.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        labels: the true classes.
        temperature: T > 0 of the weights; 1 on ImageNet, 4 on CIFAR-100 in the paper.

    Returns:
        The loss of each example; NaN where the label is no class.

    Raises:
        ValueError: shapes differ, labels that are no class indices, or T is not above
            0.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    ranking = teacher_ranking(teacher_logits, labels)
    teacher = jnp.exp(log_softmax(frozen(teacher_logits), temperature))
    weights = jnp.take_along_axis(teacher, ranking, axis=-1)
    loss = plackett_luce_loss(student_logits, ranking, weights)
    labels = jnp.asarray(labels)
    return jnp.where((labels >= 0) & (labels < teacher.shape[-1]), loss, jnp.nan)
