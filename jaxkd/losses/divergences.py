"""Losses that compare the class distributions of student and teacher.

All take logits, work in float32 through ``log_softmax``, and return one value an
example, so that the caller decides what is averaged. The teacher gets no gradient. A
class at −∞ in both networks (padding of a vocabulary, a class that no one may choose)
counts 0: values and gradients are those of the other classes alone.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkd.arguments import checked, finite, fraction, positive
from jaxkd.kernels.linear_distill.divergences import forward_kl, times
from jaxkd.losses.basics import (
    as_float,
    check_array,
    check_class_indices,
    check_positive,
    check_same_shape,
    frozen,
    log_softmax,
    logsumexp,
)


@checked(label_smoothing=fraction)
def cross_entropy_loss(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    label_smoothing: float = 0.0,
) -> Float[Array, "*batch"]:
    """Cross-entropy with labels or with probabilities, optionally smoothed.

    With smoothing ε the target is ``(1 − ε)·onehot + ε/classes`` (Szegedy et al. 2016,
    arXiv:1512.00567, Section 7), in which classes at −∞ are not counted.

    Args:
        logits: class scores.
        labels: class indices, or the classes' probabilities (of mixed examples).
        label_smoothing: ε in [0, 1).

    Returns:
        The loss of each example; NaN where the label is no class, or probabilities that
        do not sum to 1, which no compiled step could raise.

    Raises:
        ValueError: shapes do not fit, labels that are neither, or ε is outside [0, 1).
    """
    labels = jnp.asarray(labels)
    soft = jnp.issubdtype(labels.dtype, jnp.floating)
    if labels.shape != (jnp.shape(logits) if soft else jnp.shape(logits)[:-1]):
        raise ValueError(
            f"labels has shape {labels.shape} but logits has {jnp.shape(logits)}: "
            "labels must be class indices, one an example, or as many probabilities "
            "as logits"
        )
    log_p = log_softmax(as_float(logits))
    if soft:
        target = as_float(labels)
        # bfloat16's rounding is let pass.
        valid = (target >= 0).all(-1) & (jnp.abs(target.sum(-1) - 1) < 1e-2)
        loss = -times(target, log_p).sum(-1)
    else:
        check_class_indices(labels)
        valid = (labels >= 0) & (labels < log_p.shape[-1])
        index = jnp.where(valid, labels, 0)[..., None]
        picked = jnp.take_along_axis(log_p, index, axis=-1)[..., 0]
        loss = -picked
    loss = jnp.where(valid, loss, jnp.nan)
    if label_smoothing:
        exists = ~jnp.isneginf(log_p)
        total = jnp.where(exists, log_p, 0).sum(-1)
        mean = total / jnp.maximum(exists.sum(-1), 1)
        loss = (1 - label_smoothing) * loss - label_smoothing * mean
    return loss


@checked()
def kl_divergence(
    log_p: Float[Array, "*batch classes"], log_q: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Kullback-Leibler divergence KL(p ‖ q) of two normalised log-distributions.

    The terms q − p sum to 0 and make each summand at least 0, so that float32 keeps
    its digits where the two are close (high temperatures).
    """
    return forward_kl(log_p, log_q).sum(-1)


@checked(temperature=positive)
def tempered(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    temperature: float | Float[Array, ""],
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"]]:
    """Return log softmax(z/T) of student and teacher, the teacher's frozen.

    Raises:
        ValueError: shapes differ, or T is not above 0.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    check_positive("temperature", temperature)
    log_s = log_softmax(as_float(student_logits), temperature)
    return log_s, log_softmax(frozen(teacher_logits), temperature)


@checked(temperature=positive)
def kd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    temperature: float | Float[Array, ""] = 4.0,
) -> Float[Array, "*batch"]:
    """Hinton's distillation loss: T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)).

    Hinton, Vinyals, Dean 2015, arXiv:1503.02531, Section 2.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        temperature: T > 0; a traced T is differentiated (see `ctkd_temperature`).

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, or T is not above 0.
    """
    log_s, log_t = tempered(student_logits, teacher_logits, temperature)
    return temperature**2 * kl_divergence(log_t, log_s)


@checked(temperature=positive)
def reverse_kd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    temperature: float = 4.0,
) -> Float[Array, "*batch"]:
    """Reverse distillation loss: T²·KL(softmax(z_s/T) ‖ softmax(z_t/T)).

    Where `kd_loss` makes the student cover all that the teacher thinks possible, this
    keeps it from what the teacher thinks impossible, and makes it more confident.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        temperature: T > 0.

    Returns:
        The loss of each example.

    Raises:
        ValueError: shapes differ, or T is not above 0.
    """
    log_s, log_t = tempered(student_logits, teacher_logits, temperature)
    return temperature**2 * kl_divergence(log_s, log_t)


@checked(temperature=positive)
def prediction_entropy(
    logits: Float[Array, "*batch classes"], temperature: float = 1.0
) -> Float[Array, "*batch"]:
    """Entropy of softmax(z/T), in nats: 0 for a sure prediction, log(classes) at most.

    Args:
        logits: z.
        temperature: T > 0.

    Raises:
        ValueError: T is not above 0.
    """
    log_p = log_softmax(as_float(logits), temperature)
    return -times(jnp.exp(log_p), log_p).sum(-1)


@checked(temperature=positive)
def dkd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Float[Array, "*batch"]:
    """Decoupled distillation: α·(target class) + β·(non-target classes), both × T².

    Zhao et al. 2022, arXiv:2203.08679, Eq. 7. The probability of "not the target" is
    taken as the log-sum-exp of the other log-probabilities, where the authors' code
    takes the logarithm of a sum of a softmax and overflows for logits of ±50; and the
    non-target distribution leaves the target out instead of subtracting 1000 from it.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        labels: the target classes.
        temperature: T > 0.
        alpha: weight of the target-class part.
        beta: weight of the non-target part.

    Returns:
        The loss of each example; NaN where the label is no class.

    Raises:
        ValueError: shapes differ, fewer than 2 classes, labels that are no class
            indices, or T is not above 0.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    check_class_indices(labels)
    classes = jnp.shape(student_logits)[-1]
    if classes < 2:
        raise ValueError(f"student_logits has {classes} class: dkd_loss needs 2")
    is_target = jax.nn.one_hot(labels, classes, dtype=bool)

    def split(logits: Array) -> tuple[Array, Array]:
        log_p = log_softmax(logits, temperature)
        target = jnp.sum(jnp.where(is_target, log_p, 0), axis=-1)
        rest = logsumexp(jnp.where(is_target, -jnp.inf, log_p))
        among_rest = log_softmax(jnp.where(is_target, -jnp.inf, log_p))
        return jnp.stack([target, rest], axis=-1), among_rest

    target_s, rest_s = split(as_float(student_logits))
    target_t, rest_t = split(frozen(teacher_logits))
    tckd = kl_divergence(target_t, target_s)
    nckd = times(jnp.exp(rest_t), rest_t - rest_s).sum(-1)
    loss = temperature**2 * (alpha * tckd + beta * nckd)
    return jnp.where(is_target.any(-1), loss, jnp.nan)


@checked()
def target_mask(
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"], classes: int
) -> Bool[Array, "*batch classes"]:
    """Return where each example's target class is.

    Args:
        labels: class indices, or the classes' probabilities (of mixed examples), of
            which the most probable class is the target, the first among equals.
        classes: how many there are; an index that is none of them has no target.
    """
    labels = jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        labels = labels.argmax(-1)
    check_class_indices(labels)
    return jax.nn.one_hot(labels, classes, dtype=bool)


@checked(temperature=positive)
def ofa_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    """Cross-entropy with the teacher, its target class enhanced: −Σ_c w_c·log p_s,c.

    Hao et al. 2023 (One-for-All), arXiv:2310.19444, as the authors' code has it: w is
    (1 + p_t)^γ − 1 for the target class and p_t^γ for the others, with p = softmax(z/T)
    and no factor T². At γ = 1 it is KL(p_t ‖ p_s) and the teacher's entropy; a larger γ
    raises the target's weight, the more the surer the teacher is, and lowers the
    others'.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        labels: class indices, or probabilities, as `target_mask` reads them.
        gamma: γ of at least 1.
        temperature: T > 0.

    Returns:
        The loss of each example; NaN where the label is no class.

    Raises:
        ValueError: shapes do not fit, γ is below 1, or T is not above 0.
    """
    log_s, log_t = tempered(student_logits, teacher_logits, temperature)
    if gamma < 1:
        raise ValueError(f"gamma must be at least 1, got {gamma}")
    shape = jnp.shape(student_logits)
    is_target = target_mask(labels, shape[-1])
    if is_target.shape != shape:
        raise ValueError(
            f"labels has shape {jnp.shape(labels)} but student_logits has {shape}: "
            "labels must be class indices, one an example, or as many probabilities "
            "as logits"
        )
    # (1 + p)^γ − 1 as it is written would lose the digits of a small p.
    enhanced = jnp.expm1(gamma * jnp.log1p(jnp.exp(log_t)))
    weights = jnp.where(is_target, enhanced, jnp.exp(gamma * log_t))
    return jnp.where(is_target.any(-1), -times(weights, log_s).sum(-1), jnp.nan)


@checked()
def logit_deviation(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    """Standard deviation of each example's logits, the sample's (classes − 1).

    Logits at −∞ are not counted; of constant logits it is 0, with gradient 0.

    Args:
        logits: class scores.

    Raises:
        ValueError: fewer than 2 classes.
    """
    centred, exists = _centred(logits)
    variance = jnp.sum(centred**2, -1) / jnp.maximum(exists.sum(-1) - 1, 1)
    # sqrt has an infinite slope at 0: take it of 1 there, and use 0.
    constant = variance == 0
    return jnp.where(constant, 0, jnp.sqrt(jnp.where(constant, 1, variance)))


@checked(eps=positive)
def standardize_logits(
    logits: Float[Array, "*batch classes"], eps: float = 1e-7
) -> Float[Array, "*batch classes"]:
    """Logit standardisation: each example's logits to mean 0 and deviation 1.

    Sun et al. 2024, arXiv:2403.01427, Algorithm 1. Constant logits become 0 with
    gradient 0; those at −∞ stay there and are not counted.

    Args:
        logits: class scores.
        eps: added to the deviation.

    Raises:
        ValueError: fewer than 2 classes.
    """
    centred, exists = _centred(logits)
    deviation = logit_deviation(logits)[..., None]
    standard = jnp.where(deviation == 0, 0, centred / (deviation + eps))
    return jnp.where(exists, standard, -jnp.inf)


def _centred(logits: Array) -> tuple[Array, Array]:
    """Return logits less their mean, and which exist: the others are −∞ and become 0.

    Raises:
        ValueError: fewer than 2 classes.
    """
    check_array("logits", logits)
    classes = jnp.shape(logits)[-1]
    if classes < 2:
        raise ValueError(f"logits has {classes} class: a deviation needs 2 or more")
    logits = as_float(logits)
    exists = ~jnp.isneginf(logits)
    logits = jnp.where(exists, logits, 0)
    count = jnp.maximum(exists.sum(-1, keepdims=True), 1)
    mean = logits.sum(-1, keepdims=True) / count
    return jnp.where(exists, logits - mean, 0), exists


@jax.custom_vjp
def scale_gradient(x: Float[Array, "..."], scale: Array) -> Float[Array, "..."]:
    """Return ``x``; its gradient is multiplied by ``scale`` (−1 reverses it)."""
    return x


def _scale_gradient_forward(x: Array, scale: Array) -> tuple[Array, Array]:
    return x, scale


def _scale_gradient_backward(scale: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient * scale, jnp.zeros_like(scale)


scale_gradient.defvjp(_scale_gradient_forward, _scale_gradient_backward)


@checked(strength=finite)
def ctkd_temperature(
    theta: Float[Array, "..."],
    strength: float | Float[Array, ""],
    t_start: float = 1.0,
    t_end: float = 20.0,
) -> Float[Array, "..."]:
    """Curriculum temperature: t_start + t_end·sigmoid(θ), learnt adversarially.

    Li et al. 2023, arXiv:2211.16231, Section 3.2. A gradient-reversal gate stands
    between the loss and θ: the value is unchanged, the gradient is multiplied by
    ``strength``, which the curriculum takes from 0 to −1.

    Args:
        theta: the learnt scalar (or one an example).
        strength: λ, the factor on θ's gradient.
        t_start: the lowest temperature.
        t_end: the range above it.
    """
    theta = scale_gradient(as_float(theta), as_float(jnp.asarray(strength)))
    return t_start + t_end * jax.nn.sigmoid(theta)
