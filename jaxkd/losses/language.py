"""Losses on a language model's next-token distributions, one value a token.

They are for logits in memory; `jaxkd.kernels.linear_distill` computes the entrywise
ones from hidden states and heads without any.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped

from jaxkd.arguments import checked, count, positive, probability
from jaxkd.kernels.linear_distill.divergences import Divergence, forward_kl
from jaxkd.losses.basics import (
    absolute,
    as_float,
    frozen,
)
from jaxkd.losses.divergences import kl_divergence, tempered


@checked(temperature=positive)
def divergence_loss(
    student_logits: Float[Array, "*batch vocabulary"],
    teacher_logits: Float[Array, "*batch vocabulary"],
    divergence: Divergence = forward_kl,
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    """Return T²·D(softmax(z_t/T), softmax(z_s/T)) for any divergence.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        divergence: D, one of `jaxkd.kernels.linear_distill`.
        temperature: T > 0.

    Raises:
        ValueError: shapes differ, or T is not above 0.
    """
    log_s, log_t = tempered(student_logits, teacher_logits, temperature)
    return temperature**2 * divergence(log_t, log_s).sum(-1)


@checked(share=probability)
def adaptive_kl_weights(
    student_logits: Float[Array, "*batch vocabulary"],
    teacher_logits: Float[Array, "*batch vocabulary"],
    share: float = 0.5,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Return the weights of forward and reverse KL in `adaptive_kl_loss`.

    They are the shares of Σ|p − q| that lie in the teacher's head and in its tail, and
    a half each where the two distributions are equal. No gradient.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        share: μ in (0, 1), as in `adaptive_kl_loss`.

    Raises:
        ValueError: shapes differ, or μ is outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    log_s, log_t = tempered(frozen(student_logits), teacher_logits, 1.0)
    p, q = jnp.exp(log_t), jnp.exp(log_s)
    order = jnp.argsort(-p, axis=-1)
    ranked = jnp.take_along_axis(p, order, axis=-1)
    head = (jnp.cumsum(ranked, axis=-1) < share).at[..., 0].set(True)
    gap = jnp.abs(jnp.take_along_axis(q, order, axis=-1) - ranked)
    total = gap.sum(-1)
    in_head = jnp.where(head, gap, 0).sum(-1)
    weight = jnp.where(total > 0, in_head / jnp.where(total > 0, total, 1), 0.5)
    return weight, 1 - weight


@checked(share=probability)
def adaptive_kl_loss(
    student_logits: Float[Array, "*batch vocabulary"],
    teacher_logits: Float[Array, "*batch vocabulary"],
    share: float = 0.5,
) -> Float[Array, "*batch"]:
    """Forward and reverse KL, each weighted by where the student errs.

    Wu et al. 2024 (AKL), arXiv:2404.02657, Section 4: forward KL mends the head of the
    teacher's distribution first and reverse KL its tail. The head is the tokens, most
    probable first, whose probabilities sum to less than μ, and the first.

    Args:
        student_logits: z_s.
        teacher_logits: z_t.
        share: μ in (0, 1), of the probability that is the head's.

    Raises:
        ValueError: shapes differ, or μ is outside (0, 1).
    """
    head, tail = adaptive_kl_weights(student_logits, teacher_logits, share)
    log_s, log_t = tempered(student_logits, teacher_logits, 1.0)
    return head * kl_divergence(log_t, log_s) + tail * kl_divergence(log_s, log_t)


@checked(student_temperature=positive, teacher_temperature=positive)
def uld_loss(
    student_logits: Float[Array, "batch student_length student_vocabulary"],
    teacher_logits: Float[Array, "batch teacher_length teacher_vocabulary"],
    student_mask: Shaped[Array, "batch student_length"],
    teacher_mask: Shaped[Array, "batch teacher_length"],
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Float[Array, "batch"]:
    """Universal logit distillation, between networks with different tokenizers.

    Boizard et al. 2024, arXiv:2402.12030, Eq. 6: Σ over tokens and ranks of the
    difference between the student's and the teacher's sorted probabilities, a
    Wasserstein distance with equal costs, over the number of tokens. The n-th token of
    the student's answer meets the n-th of the teacher's, up to the end of the shorter;
    the smaller vocabulary is filled up with zeros.

    Args:
        student_logits: z_s.
        teacher_logits: z_t, of the same text in the teacher's tokens.
        student_mask: 1 where the student predicts a token of the answer.
        teacher_mask: likewise, of the teacher.
        student_temperature: above 0.
        teacher_temperature: above 0.

    Returns:
        The loss of each example, 0 for an empty answer.

    Raises:
        ValueError: a temperature that is not above 0, or batches or masks that differ
            in size.
    """
    for name, mask, logits in (
        ("student_mask", student_mask, student_logits),
        ("teacher_mask", teacher_mask, teacher_logits),
    ):
        if mask.shape != (student_logits.shape[0], logits.shape[1]):
            raise ValueError(
                f"{name} has shape {mask.shape} but its logits have {logits.shape} and "
                f"the student's batch is {student_logits.shape[0]}: give one value a "
                "token of the same examples"
            )
    length = min(student_logits.shape[1], teacher_logits.shape[1])
    vocabulary = max(student_logits.shape[2], teacher_logits.shape[2])

    def ranked(logits: Array, temperature: float, mask: Array) -> Array:
        """Return sorted probabilities, the answer's tokens first."""
        answer_first = jnp.argsort(mask <= 0, axis=1, stable=True)[:, :length]
        logits = jnp.take_along_axis(logits, answer_first[..., None], axis=1)
        exists = ~jnp.isneginf(logits)
        probabilities = jax.nn.softmax(logits / temperature, where=exists)
        probabilities = -jnp.sort(-probabilities, axis=-1)
        return jnp.pad(
            probabilities, ((0, 0), (0, 0), (0, vocabulary - logits.shape[-1]))
        )

    student = ranked(as_float(student_logits), student_temperature, student_mask)
    teacher = ranked(frozen(teacher_logits), teacher_temperature, teacher_mask)
    distances = absolute(student - teacher).sum(-1)
    tokens = jnp.minimum((student_mask > 0).sum(1), (teacher_mask > 0).sum(1))
    counted = jnp.arange(length) < tokens[:, None]
    return jnp.where(counted, distances, 0).sum(1) / jnp.maximum(tokens, 1)


@checked(heads=count)
def relation_loss(
    student: Float[Array, "batch length student_width"],
    teacher: Float[Array, "batch length teacher_width"],
    heads: int,
    mask: Shaped[Array, "batch length"] | None = None,
    segments: Integer[Array, "batch length"] | None = None,
) -> Float[Array, "batch length"]:
    """KL of how each token relates to the others, by heads of features.

    Wang et al. 2020 (MiniLMv2), arXiv:2012.15828, Eq. 4: relations are
    softmax(A·Aᵀ/√d) of queries, keys, values or hidden states A, cut into as many
    heads of features in both networks, whose widths may differ.

    Args:
        student: A of the student.
        teacher: A of the teacher.
        heads: that the features are cut into; the mean over them is returned. For
            widths that they do not divide there is `cut_to_heads`.
        mask: (batch, length) 0 for tokens that others do not relate to.
        segments: (batch, length) the number of each token's document, where a row has
            several: tokens relate to those of their own alone.

    Returns:
        The loss of each token.

    Raises:
        ValueError: other tokens, or heads that do not divide a width.
    """
    _check_tokens(student, teacher)

    def log_relations(x: Array) -> Array:
        batch, length, width = x.shape
        if width % heads:
            raise ValueError(f"heads {heads} do not divide {width} features")
        x = x.reshape(batch, length, heads, width // heads)
        scores = jnp.einsum("bqhd,bkhd->bhqk", x, x) / (width // heads) ** 0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :] > 0, scores, -1e30)
        if segments is not None:
            same = segments[:, None, :, None] == segments[:, None, None, :]
            scores = jnp.where(same, scores, -1e30)
        return jax.nn.log_softmax(scores)

    log_s, log_t = log_relations(as_float(student)), log_relations(frozen(teacher))
    return kl_divergence(log_t, log_s).mean(1)


@checked(heads=count)
def cut_to_heads(
    x: Float[Array, "batch length width"], heads: int
) -> Float[Array, "batch length cut"]:
    """Return the first heads·⌊width/heads⌋ features, which heads of relations divide.

    Xu et al. 2022 (AutoDistil), arXiv:2201.12507: so students of 7 to 12 attention
    heads have the 12 relation heads of their teacher.

    Args:
        x: queries, keys, values or hidden states.
        heads: of relations.

    Raises:
        ValueError: more heads than features.
    """
    if heads > x.shape[-1]:
        raise ValueError(f"heads must be at most {x.shape[-1]} features, got {heads}")
    return x[..., : x.shape[-1] // heads * heads]


@checked(heads=count)
def relation_score_loss(
    student: Float[Array, "batch length student_width"],
    teacher: Float[Array, "batch length teacher_width"],
    heads: int,
    mask: Shaped[Array, "batch length"] | None = None,
) -> Float[Array, "batch length"]:
    """Squared error of how each token relates to the others, before any softmax.

    Xu et al. 2022 (AutoDistil), arXiv:2201.12507, as its code has it: of A·Aᵀ/√d, with
    A as in `relation_loss`, which is the paper's and knows no scale. Surplus features
    are cut off. Padding counts nowhere; the code counts it, whose own masks cancel.

    Args:
        student: A of the student.
        teacher: A of the teacher.
        heads: that the features are cut into; the mean over them is returned.
        mask: 0 for tokens that are padding.

    Returns:
        The loss of each token, a mean over the tokens that it relates to.

    Raises:
        ValueError: other tokens, or more heads than features.
    """
    _check_tokens(student, teacher)
    real = jnp.ones(student.shape[:2]) if mask is None else as_float(mask > 0)

    def scores(x: Array) -> Array:
        x = jnp.where(real[..., None] > 0, cut_to_heads(x, heads), 0)
        x = x.reshape(*x.shape[:2], heads, -1)
        exact = jax.lax.Precision.HIGHEST
        found = jnp.einsum("bqhd,bkhd->bqkh", x, x, precision=exact)
        return found / x.shape[-1] ** 0.5

    gaps = scores(as_float(student)) - scores(frozen(teacher))
    others = jnp.maximum(real.sum(1, keepdims=True), 1)
    return (gaps**2).mean(-1).sum(-1) / others


def _check_tokens(student: Array, teacher: Array) -> None:
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student has shape {student.shape} but teacher {teacher.shape}: run both "
            "networks on the same tokens"
        )
