"""Contrastive distillation: within a batch, and with a memory of the whole data set.

The memory is state, an explicit pytree that is passed in and returned, to be stored in
the checkpoint with the rest.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, fraction, integer, positive
from jaxkd.losses.basics import (
    as_float,
    check_array,
    check_class_indices,
    check_same_shape,
    frozen,
    l2_normalize,
    log_softmax,
    zero_masked,
)


@checked(examples=count, dim=count)
def crd_init(key: PRNGKeyArray, examples: int, dim: int) -> dict[str, Array]:
    """Return the state of `crd_loss` before the first step.

    Args:
        key: draws the memory banks, uniform in ±√(3/dim).
        examples: the size of the training set.
        dim: the width of the embeddings.

    Returns:
        ``student_bank`` and ``teacher_bank``, (examples, dim); ``student_log_z`` and
        ``teacher_log_z``, the logarithms of the normalisers, −inf until they are set.
    """
    keys = jax.random.split(key)
    bound = (3 / dim) ** 0.5
    banks = [
        jax.random.uniform(k, (examples, dim), jnp.float32, -bound, bound) for k in keys
    ]
    return {
        "student_bank": banks[0],
        "teacher_bank": banks[1],
        "student_log_z": jnp.array(-jnp.inf),
        "teacher_log_z": jnp.array(-jnp.inf),
    }


@checked(temperature=positive, momentum=fraction)
def crd_loss(
    state: dict[str, Array],
    student_embedding: Float[Array, "batch dim"],
    teacher_embedding: Float[Array, "batch dim"],
    contrast_index: Int[Array, "batch candidates"],
    temperature: float = 0.07,
    momentum: float = 0.5,
    weights: Float[Array, "batch"] | None = None,
) -> tuple[Float[Array, "batch"], dict[str, Array]]:
    """Contrastive representation distillation, noise-contrastive over memory banks.

    Tian et al. 2020, arXiv:1910.10699, Eq. 17-19. Each network's embedding must tell
    the other's memory of the same example from those of K examples of other classes.
    The first call that counts an example fixes the two normalisers for ever. Takes
    memory for batch·candidates·dim numbers.

    Args:
        state: from `crd_init`, or the last call.
        student_embedding: normalised here.
        teacher_embedding: normalised here. It gets a gradient, since the layer that
            makes it is trained too: freeze what that layer reads.
        contrast_index: data set positions: column 0 is the example's own, the others
            the K negatives (see `sample_negatives`).
        temperature: τ > 0.
        momentum: how much of an old memory is kept.
        weights: one an example; 0 gives loss 0 and leaves the state as it is.

    Returns:
        The loss of each example, NaN where a position is outside the data set, and the
        new state. Where an example is twice in the batch, the later one's memory stays.

    Raises:
        ValueError: shapes do not fit, or τ is not above 0.
    """
    check_same_shape(student_embedding, teacher_embedding, "embedding")
    check_array("student_embedding", student_embedding, 2)
    batch, dim = jnp.shape(student_embedding)
    examples, bank_dim = state["student_bank"].shape
    if dim != bank_dim:
        raise ValueError(
            f"student_embedding has shape {(batch, dim)} but the state's banks hold "
            f"vectors of {bank_dim}: give crd_init the embeddings' width"
        )
    index_shape = jnp.shape(contrast_index)
    if len(index_shape) != 2 or index_shape[0] != batch or index_shape[1] < 2:
        raise ValueError(
            f"contrast_index has shape {index_shape} but student_embedding has shape "
            f"{(batch, dim)}: give each example its position and at least 1 negative, "
            "as sample_negatives does"
        )
    weights = jnp.ones(batch) if weights is None else as_float(weights)
    contrast_index = zero_masked(contrast_index, weights)
    inside = ((contrast_index >= 0) & (contrast_index < examples)).all(1)
    student = l2_normalize(zero_masked(as_float(student_embedding), weights))
    teacher = l2_normalize(zero_masked(as_float(teacher_embedding), weights))

    def first_log_z(scores: Array) -> Array:
        total = weights.sum() * index_shape[1]
        log_sum = jax.nn.logsumexp(frozen(scores), b=weights[:, None])
        log_z = log_sum - jnp.log(total) + jnp.log(examples)
        return jnp.where(total > 0, log_z, -jnp.inf)

    def contrast(embedding: Array, bank: Array, log_z: Array) -> tuple[Array, Array]:
        candidates = frozen(bank)[contrast_index]
        scores = jnp.einsum(
            "bkd,bd->bk", candidates, embedding, precision=jax.lax.Precision.HIGHEST
        )
        scores = scores / temperature
        log_z = jnp.where(jnp.isneginf(log_z), first_log_z(scores), log_z)
        log_x = scores - jnp.where(jnp.isneginf(log_z), 0, log_z)
        # K times the noise distribution, which is uniform over the data set.
        noise = (index_shape[1] - 1) / examples
        log_sum = jnp.logaddexp(log_x, jnp.log(noise + 1e-7))
        hit = log_x[:, 0] - log_sum[:, 0]
        misses = jnp.sum(jnp.log(noise) - log_sum[:, 1:], axis=1)
        return zero_masked(jnp.where(inside, -hit - misses, jnp.nan), weights), log_z

    index = contrast_index[:, 0]
    counts = weights > 0
    repeated = (index[:, None] == index[None, :]) & counts[None, :]
    last = counts & ~jnp.any(jnp.triu(repeated, k=1), axis=1)
    # Positions past the end are dropped, so that each is written at most once.
    position = jnp.where(last, index, examples)

    def updated(bank: Array, embedding: Array) -> Array:
        mixed = momentum * bank[index] + (1 - momentum) * frozen(embedding)
        mixed = l2_normalize(mixed).astype(bank.dtype)
        return jax.lax.stop_gradient(bank.at[position].set(mixed, mode="drop"))

    student_bank, teacher_bank = state["student_bank"], state["teacher_bank"]
    loss_s, student_log_z = contrast(student, teacher_bank, state["student_log_z"])
    loss_t, teacher_log_z = contrast(teacher, student_bank, state["teacher_log_z"])
    return loss_s + loss_t, {
        "student_bank": updated(student_bank, student),
        "teacher_bank": updated(teacher_bank, teacher),
        "student_log_z": student_log_z,
        "teacher_log_z": teacher_log_z,
    }


@checked(negatives=integer)
def sample_negatives(
    key: PRNGKeyArray,
    labels: np.ndarray,
    index: Int[Array, "batch"],
    negatives: int,
    batch_labels: Int[Array, "batch"] | None = None,
) -> Int[Array, "batch candidates"]:
    """Draw negatives for `crd_loss`: examples of other classes, without replacement.

    Args:
        key: draws them.
        labels: the class of every example of the data set, a concrete array.
        index: the batch's positions in the data set.
        negatives: K, how many for each example.
        batch_labels: the batch's classes; None reads them from ``labels``.

    Returns:
        (batch, K + 1): the example's own position, then its negatives.

    Raises:
        ValueError: labels that are no class indices, or the largest class leaves fewer
            than K examples of other classes.
    """
    check_class_indices(labels)
    labels = np.asarray(labels)
    others = len(labels) - np.unique(labels, return_counts=True)[1].max()
    if not 1 <= negatives <= others:
        raise ValueError(
            f"negatives must be in 1..{others}, got {negatives}: the largest class "
            f"leaves {others} of {len(labels)} examples to draw from"
        )
    known = jnp.asarray(labels)
    batch_labels = known[index] if batch_labels is None else batch_labels
    scores = jax.random.uniform(key, (len(index), len(labels)))
    scores = jnp.where(known[None, :] == batch_labels[:, None], -1, scores)
    drawn = jax.lax.top_k(scores, negatives)[1]
    return jnp.concatenate([index[:, None], drawn.astype(index.dtype)], axis=1)


@checked(temperature=positive)
def info_nce_loss(
    student_embedding: Float[Array, "nodes dim"],
    teacher_embedding: Float[Array, "nodes dim"],
    temperature: float | Float[Array, ""] = 0.07,
    weights: Float[Array, "nodes"] | None = None,
) -> Float[Array, "nodes"]:
    """InfoNCE of one direction: each embedding must tell its teacher's from all others.

    van den Oord et al. 2018, arXiv:1807.03748, Eq. 4, with cosines:
    ``−log softmax_j(cos(s_i, t_j)/τ)`` at j = i. The negatives are those of the batch.
    Takes memory for (nodes, nodes) scores.

    Args:
        student_embedding: s, normalised here.
        teacher_embedding: t, likewise, row by row of the same examples or tokens. It
            gets a gradient, since the layer that makes it is trained too: freeze what
            that layer reads.
        temperature: τ > 0.
        weights: one a node; 0 gives loss 0 and takes it from the others' negatives.

    Returns:
        The loss of each node.

    Raises:
        ValueError: shapes differ, or τ is not above 0.
    """
    check_same_shape(student_embedding, teacher_embedding, "embedding")
    check_array("student_embedding", student_embedding, 2)
    student, teacher = (
        l2_normalize(zero_masked(as_float(x), weights))
        for x in (student_embedding, teacher_embedding)
    )
    scores = jnp.matmul(student, teacher.T, precision=jax.lax.Precision.HIGHEST)
    if weights is not None:
        scores = jnp.where(as_float(weights) > 0, scores, -jnp.inf)
    return zero_masked(-jnp.diagonal(log_softmax(scores, temperature)), weights)
