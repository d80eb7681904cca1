"""FIRST, fine-tuning from a teacher's few best tokens (Shum et al. 2024)."""

from typing import Literal

import jax.numpy as jnp

from jaxkd.arguments import checked, own_check, positive
from jaxkd.losses.basics import as_float, weighted_loss
from jaxkd.losses.first import Space, first_loss, recalibrate_top_k
from jaxkd.methods.base import from_loss
from jaxkd.methods.masks import batch_weights, documents, earlier_tokens
from jaxkd.methods.topk_kd import checking_targets, top_k_targets
from jaxkd.types import Loss, Method


@checked(temperature=positive, reduction=own_check)
def first(
    temperature: float = 1.0,
    *,
    k: int | None = None,
    space: Space = "log",
    student_space: Space = "log",
    reduction: Literal["token", "sequence"] = "token",
) -> Method:
    """Return KL to the teacher's k best tokens, re-calibrated by a temperature.

    Shum et al. 2024, arXiv:2408.12168: k = 5, and the temperature that
    `jaxkd.evaluation.calibration.search_temperature` finds on held-out examples. The
    teacher is read as by `topk_kd`: from a cache as a rule. The authors' code has
    ``space`` and ``student_space`` "probability" and ``reduction`` "sequence".

    Args:
        temperature: c > 0; 1 in ``log`` space is distillation as it is.
        k: how many tokens; None for all that the batch has.
        space: of the teacher's probabilities, see `recalibrate_top_k`.
        student_space: of the student's.
        reduction: the mean over tokens, or their sum over the number of sequences, by
            which a learning rate means less for short answers.

    Raises:
        ValueError: from ``loss``, no targets, tokens of the teacher that the student
            has not, or arguments out of range.
    """
    if reduction not in ("token", "sequence"):
        raise ValueError(f"reduction must be token or sequence, got {reduction!r}")

    def loss(student, teacher, batch):
        ids, log_probs = top_k_targets(teacher, batch, k)
        targets = recalibrate_top_k(log_probs, temperature, space)
        values = first_loss(student.logits, ids, targets, space=student_space)
        if reduction == "token":
            return values
        weights = batch_weights(batch, values.shape)
        weights = jnp.ones(values.shape) if weights is None else weights
        counted, numbers = weights > 0, documents(batch, values.shape)
        if numbers is None:
            sequences = counted.reshape(len(counted), -1).any(-1).sum()
        else:  # As many as there are first tokens of a document.
            sequences = (counted & (earlier_tokens(numbers, counted) == 0)).sum()
        return Loss(weighted_loss(values, weights).total, as_float(sequences))

    return checking_targets(from_loss(loss, name="first"))
