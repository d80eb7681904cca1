"""Distillation from the k best tokens of a teacher: cached, served, or in the step."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxkd.arguments import checked, count
from jaxkd.checks import check_teacher_ids
from jaxkd.losses.basics import OTHER_WIDTHS, expand_weights
from jaxkd.losses.topk import (
    top_k_kd_loss,
    top_k_log_probs,
    top_k_reverse_kd_loss,
)
from jaxkd.methods.base import from_loss
from jaxkd.methods.masks import counted_places
from jaxkd.types import Batch, Method, Outputs


@checked()
def top_k_targets(teacher: Outputs, batch: Batch, k: int | None) -> tuple[Array, Array]:
    """Return a teacher's best tokens and log-probabilities, from its logits or a batch.

    Args:
        teacher: its outputs; without logits the batch is read.
        batch: ``teacher_ids`` and ``teacher_log_probs`` (…, k), best first.
        k: how many of them; None for all that the batch has.

    Raises:
        ValueError: there is neither, the batch has fewer than k, or k is None where a
            teacher runs in the step.
    """
    if teacher.logits is not None:
        if k is None:
            raise ValueError(
                "k is None, but the teacher runs in the step and has its whole "
                "vocabulary: say how many of its best tokens to learn from, or use kd()"
            )
        return top_k_log_probs(teacher.logits, k)
    if "teacher_ids" not in batch or "teacher_log_probs" not in batch:
        raise ValueError(
            f"there is no teacher, and the batch has {sorted(batch)}, but no "
            "teacher_ids and teacher_log_probs: train on teachers.CachedTeacher or "
            "teachers.ServedTeacher, or pass distill() the teacher"
        )
    ids, log_probs = batch["teacher_ids"], batch["teacher_log_probs"]
    if k is not None and jnp.shape(ids)[-1] < k:
        raise ValueError(
            f"k is {k}, but the batch holds the teacher's {jnp.shape(ids)[-1]} best "
            "tokens: lower k, or make the cache again with more"
        )
    ids, log_probs = ids[..., :k], log_probs[..., :k]
    counted = counted_places(batch, jnp.shape(ids)[:-1])
    if counted is not None:  # What stands elsewhere may be no token.
        counted = expand_weights(counted, ids.shape) > 0
        ids = jnp.where(counted, ids, jnp.arange(ids.shape[-1]))
    return ids, log_probs


def checking_targets(method: Method) -> Method:
    """Return a method on `top_k_targets` that refuses tokens the student has not.

    Args:
        method: that learns from a teacher's best tokens.

    Raises:
        ValueError: a teacher in the step with more logits than the student; from
            ``init``, a batch with ``teacher_ids`` beyond the student's logits.
    """

    def check(student: Outputs, teacher: Outputs, batch: Batch) -> None:
        size = student.logits.shape[-1]
        if teacher.logits is None:
            check_teacher_ids(batch.get("teacher_ids"), size)
        elif teacher.logits.shape[-1] > size:
            raise ValueError(
                f"the student has {size} logits but the teacher "
                f"{teacher.logits.shape[-1]}, so the teacher's best tokens may be none "
                f"of the student's: "
                f"{OTHER_WIDTHS}"
            )

    def init(key, student, teacher, batch):
        check(student, teacher, batch)
        return method.init(key, student, teacher, batch)

    def loss(variables, student, teacher, batch, key, step):
        check(student, teacher, batch)
        return method.loss(variables, student, teacher, batch, key, step)

    return method._replace(init=init, loss=loss)


@checked(k=count)
def topk_kd(
    k: int | None = None, *, reverse: bool = False, rest: bool = True
) -> Method:
    """Return KL(teacher ‖ student) on the teacher's k best tokens.

    The student is trained by ``distill(student, None, topk_kd(), …)`` on batches of
    `jaxkd.teachers.CachedTeacher` or `jaxkd.teachers.ServedTeacher`. With a teacher in
    the step instead, the loss is the same number from its logits. Beside the labels,
    which a cache has too, as in ``combine((0.5, cross_entropy()), (0.5, topk_kd()))``.

    Args:
        k: how many tokens; None for all that the batch has.
        reverse: KL(student ‖ teacher) instead.
        rest: whether all other tokens together are a further class; otherwise both
            distributions are normalised over the k.

    Raises:
        ValueError: k is below 1; from ``loss``, as `top_k_targets`; from both, tokens
            of the teacher that the student has not.
    """
    loss = top_k_reverse_kd_loss if reverse else top_k_kd_loss
    return checking_targets(
        from_loss(
            lambda student, teacher, batch: loss(
                student.logits, *top_k_targets(teacher, batch, k), rest=rest
            ),
            name="topk_kd",
        )
    )
