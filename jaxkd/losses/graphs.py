"""Losses and diagnostics on the edges of a graph, for students that do not see it.

A student that learns a graph network's answers node by node keeps what neighbours have
in common and loses how they differ. The two losses here teach both along edges. They
gather rows of the classes' width, one an edge, and return one value an edge; masked
edges are left out by the caller's mean. The teacher's logits get no gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, positive
from jaxkd.losses.basics import (
    EPS,
    absolute,
    as_float,
    check_same_shape,
    frozen,
    l2_normalize,
    log_softmax,
)
from jaxkd.losses.divergences import kl_divergence


@checked()
def edge_low_frequency_loss(
    student_logits: Float[Array, "nodes classes"],
    teacher_logits: Float[Array, "nodes classes"],
    senders: Int[Array, "edges"],
    receivers: Int[Array, "edges"],
) -> Float[Array, "edges"]:
    """Low-frequency distillation: KL(softmax(h_j) ‖ softmax(z_i)) for each edge i → j.

    Wu et al. 2023, arXiv:2305.10758, as the authors' code has it: the student at an
    edge's start learns the teacher's answer at its end. Give every node a self-loop, so
    that it learns its own answer too.

    Args:
        student_logits: z.
        teacher_logits: h.
        senders: i.
        receivers: j.

    Returns:
        The loss of each edge; the paper takes the mean over edges and self-loops.

    Raises:
        ValueError: the logits' or the ends' shapes differ.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    _check_ends(senders, receivers, len(student_logits))
    log_s = log_softmax(as_float(student_logits))
    log_t = log_softmax(frozen(teacher_logits))
    return kl_divergence(log_t[receivers], log_s[senders])


@checked(temperature=positive)
def edge_difference_log_probs(
    logits: Float[Array, "nodes classes"],
    senders: Int[Array, "edges"],
    receivers: Int[Array, "edges"],
    temperature: float = 1.0,
) -> Float[Array, "edges classes"]:
    """Return ``log softmax(|z_i − z_j|/τ)``: over which classes an edge's ends differ.

    Wu et al. 2023, arXiv:2305.10758. The logits are compared as they are, so a constant
    added to all logits of one node matters. Where they are equal the gradient is 0; a
    class at −∞ at either end is left out.

    Args:
        logits: z.
        senders: i.
        receivers: j.
        temperature: τ > 0.

    Raises:
        ValueError: τ is not above 0, or the ends' shapes differ.
    """
    _check_ends(senders, receivers, len(logits))
    logits = as_float(logits)
    exists = ~jnp.isneginf(logits)
    logits, exist = jnp.where(exists, logits, 0), exists[senders] & exists[receivers]
    differences = absolute(logits[senders] - logits[receivers])
    return log_softmax(jnp.where(exist, differences, -jnp.inf), temperature)


@checked(temperature=positive)
def edge_high_frequency_loss(
    student_logits: Float[Array, "nodes classes"],
    teacher_logits: Float[Array, "nodes classes"],
    senders: Int[Array, "edges"],
    receivers: Int[Array, "edges"],
    temperature: float = 1.0,
) -> Float[Array, "edges"]:
    """High-frequency distillation: KL of the ends' differences, teacher ‖ student.

    Wu et al. 2023, arXiv:2305.10758, as the authors' code has it:
    ``KL(softmax(|h_i − h_j|/τ) ‖ softmax(|z_i − z_j|/τ))`` without a factor τ². A
    self-loop adds 0, so leave them out: they would only dilute the mean.

    Args:
        student_logits: z.
        teacher_logits: h.
        senders: i.
        receivers: j.
        temperature: τ > 0.

    Returns:
        The loss of each edge; the paper takes the mean over edges.

    Raises:
        ValueError: shapes differ, fewer than 2 classes, or τ is not above 0.
    """
    check_same_shape(student_logits, teacher_logits, "logits")
    classes = jnp.shape(student_logits)[-1]
    if classes < 2:
        raise ValueError(
            f"student_logits has {classes} class: a distribution of differences needs 2"
        )
    log_s = edge_difference_log_probs(student_logits, senders, receivers, temperature)
    log_t = edge_difference_log_probs(
        frozen(teacher_logits), senders, receivers, temperature
    )
    return kl_divergence(log_t, log_s)


@checked()
def neighbor_cosine(
    logits: Float[Array, "nodes classes"],
    senders: Int[Array, "edges"],
    receivers: Int[Array, "edges"],
    edge_weights: Float[Array, "edges"] | None = None,
) -> Float[Array, ""]:
    """Return the mean cosine of a node's logits and its neighbours' mean.

    It measures how much of the low frequencies the logits hold. Nodes without
    neighbours are left out, and so are logits at −∞; 0 if no node has any.

    Args:
        logits: of the nodes.
        senders: the neighbours.
        receivers: the nodes.
        edge_weights: 0 for padding.

    Raises:
        ValueError: the ends' shapes differ.
    """
    _check_ends(senders, receivers, len(logits))
    logits = as_float(logits)
    logits = jnp.where(jnp.isneginf(logits), 0, logits)
    if edge_weights is None:
        edge_weights = jnp.ones(senders.shape)
    # The cosine is the same of the neighbours' sum.
    neighbours = jax.ops.segment_sum(
        edge_weights[:, None] * logits[senders], receivers, logits.shape[0]
    )
    counted = jax.ops.segment_sum(edge_weights, receivers, logits.shape[0]) > 0
    cosine = (l2_normalize(logits) * l2_normalize(neighbours)).sum(-1)
    return jnp.where(counted, cosine, 0).sum() / jnp.maximum(counted.sum(), EPS)


def _check_ends(senders: Array, receivers: Array, nodes: int) -> None:
    if jnp.shape(senders) != jnp.shape(receivers) or jnp.ndim(senders) != 1:
        raise ValueError(
            f"senders has shape {jnp.shape(senders)} but receivers has "
            f"{jnp.shape(receivers)}: both must be (edges,)"
        )
    for name, ends in (("senders", senders), ("receivers", receivers)):
        if isinstance(ends, Tracer) or not len(ends):
            continue
        lowest, highest = np.asarray(ends).min(), np.asarray(ends).max()
        if lowest < 0 or highest >= nodes:
            raise ValueError(
                f"{name} holds nodes from {lowest} to {highest}, but there are {nodes}:"
                f" 0 to {nodes - 1}"
            )
