"""Losses that know of the teacher only its k best tokens and their log-probabilities.

A language model's whole distribution is too large to store or to send; its k best
tokens hold nearly all of its mass. All losses return one value a token and work in
float32; the teacher gets no gradient. What the teacher gives to the other tokens
together, the *rest*, is either a class of its own or left out of both distributions.
Where all other tokens are at −∞ there is no rest, as if k were the vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxkd.arguments import checked, integer
from jaxkd.losses.basics import (
    as_float,
    check_array,
    frozen,
    log_softmax,
    logsumexp,
)
from jaxkd.losses.divergences import kl_divergence


@checked(k=integer)
def top_k_log_probs(
    logits: Float[Array, "*batch vocabulary"], k: int
) -> tuple[Integer[Array, "*batch k"], Float[Array, "*batch k"]]:
    """Return the k most probable tokens, best first, and their log-probabilities.

    The probabilities are those of the whole vocabulary, so they sum to less than 1.

    Args:
        logits: of every token; of equal ones, the lower token counts as better.
        k: how many tokens.

    Raises:
        ValueError: k is not between 1 and the vocabulary.
    """
    check_array("logits", logits)
    vocabulary = jnp.shape(logits)[-1]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k must be 1 to {vocabulary} (the vocabulary), got {k}")
    best, ids = jax.lax.top_k(logits, k)
    return ids, _normalised(as_float(best), as_float(logits))


@checked()
def gather_log_probs(
    logits: Float[Array, "*batch vocabulary"], ids: Integer[Array, "*batch k"]
) -> Float[Array, "*batch k"]:
    """Return the log-probabilities of some tokens, without those of all others.

    Args:
        logits: of every token.
        ids: of the tokens asked for; those outside the vocabulary give NaN, which no
            compiled step could raise.

    Raises:
        ValueError: the leading axes differ.
    """
    _check_ids(logits, ids)
    logits = as_float(logits)
    picked = jnp.take_along_axis(logits, ids, axis=-1, mode="fill", fill_value=jnp.nan)
    # A negative one would be counted from the end.
    return _normalised(jnp.where(ids < 0, jnp.nan, picked), logits)


@checked()
def top_k_kd_loss(
    student_logits: Float[Array, "*batch vocabulary"],
    teacher_ids: Integer[Array, "*batch k"],
    teacher_log_probs: Float[Array, "*batch k"],
    *,
    rest: bool = True,
) -> Float[Array, "*batch"]:
    """KL(teacher ‖ student) on the teacher's k best tokens.

    With k the whole vocabulary it is `jaxkd.losses.kd_loss` at T = 1. Without the rest,
    both distributions are normalised over the k tokens, and nothing holds down what the
    student gives to others.

    Args:
        student_logits: of every token.
        teacher_ids: the teacher's k best tokens, all different.
        teacher_log_probs: theirs, of any float dtype.
        rest: whether all other tokens together are a further class.

    Returns:
        The loss of each token; NaN where an id is outside the student's vocabulary.

    Raises:
        ValueError: shapes do not fit, or k is above the student's vocabulary.
    """
    student, teacher = _both(student_logits, teacher_ids, teacher_log_probs, rest)
    return kl_divergence(teacher, student)


@checked()
def top_k_reverse_kd_loss(
    student_logits: Float[Array, "*batch vocabulary"],
    teacher_ids: Integer[Array, "*batch k"],
    teacher_log_probs: Float[Array, "*batch k"],
    *,
    rest: bool = True,
) -> Float[Array, "*batch"]:
    """KL(student ‖ teacher) on the teacher's k best tokens, as `top_k_kd_loss`.

    Args:
        student_logits: of every token.
        teacher_ids: the teacher's k best tokens, all different.
        teacher_log_probs: theirs, of any float dtype.
        rest: whether all other tokens together are a further class.

    Returns:
        The loss of each token; NaN where an id is outside the student's vocabulary.

    Raises:
        ValueError: shapes do not fit, or k is above the student's vocabulary.
    """
    student, teacher = _both(student_logits, teacher_ids, teacher_log_probs, rest)
    return kl_divergence(student, teacher)


def _both(
    student_logits: Array, ids: Array, teacher_log_probs: Array, rest: bool
) -> tuple[Array, Array]:
    """Return both log-distributions over the k tokens, and the rest if there is one."""
    check_array("teacher_ids", ids)
    check_array("teacher_log_probs", teacher_log_probs)
    if jnp.shape(ids) != jnp.shape(teacher_log_probs):
        raise ValueError(
            f"teacher_ids has shape {jnp.shape(ids)} but teacher_log_probs has "
            f"{jnp.shape(teacher_log_probs)}: give each token one log-probability"
        )
    student, teacher = gather_log_probs(student_logits, ids), frozen(teacher_log_probs)
    if rest and ids.shape[-1] < student_logits.shape[-1]:
        others = _rest(student_logits, ids)
        student = jnp.concatenate([student, others], axis=-1)
        left = -jnp.expm1(logsumexp(teacher))[..., None]
        # A smaller rest, or one below 0 by rounding, is no different from none.
        left = jnp.log(jnp.maximum(left, jnp.finfo(left.dtype).eps))
        left = jnp.where(jnp.isneginf(others), -jnp.inf, left)
        teacher = jnp.concatenate([teacher, left], axis=-1)
    return log_softmax(student), log_softmax(teacher)


def _rest(
    logits: Float[Array, "*batch vocabulary"], ids: Integer[Array, "*batch k"]
) -> Float[Array, "*batch 1"]:
    """Return log(1 − Σ p(ids)) as the log-sum-exp of the other logits.

    The difference would have no digits left where the k tokens have nearly all mass.
    """
    logits = as_float(logits)
    others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
    return _normalised(logsumexp(others)[..., None], logits)


def _normalised(
    some: Float[Array, "*batch some"], logits: Float[Array, "*batch vocabulary"]
) -> Float[Array, "*batch some"]:
    """Return some logits less the log-sum-exp of all, as exact as ``log_softmax``."""
    highest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    # Where all are at −∞ so is each of them; −∞ less −∞ would be NaN.
    highest = jnp.maximum(highest, jnp.finfo(logits.dtype).min)
    total = jnp.sum(jnp.exp(logits - highest), axis=-1, keepdims=True)
    return (some - highest) - jnp.log(jnp.where(total == 0, 1, total))


def _check_ids(logits: Array, ids: Array) -> None:
    check_array("logits", logits)
    if jnp.shape(ids)[:-1] != jnp.shape(logits)[:-1]:
        raise ValueError(
            f"ids has shape {jnp.shape(ids)} but logits has {jnp.shape(logits)}: give "
            "k ids for each token's logits"
        )
    if ids.shape[-1] > logits.shape[-1]:
        raise ValueError(
            f"ids has {ids.shape[-1]} tokens each, but the vocabulary of logits is "
            f"{logits.shape[-1]}"
        )
