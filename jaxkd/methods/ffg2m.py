"""FF-G2M: low- and high-frequency knowledge of a graph network for a perceptron.

Wu et al. 2023, arXiv:2305.10758. Batches are those of `glnn`. The objective's terms are
methods of their own, so that the paper's ablations are combinations too.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive, probability
from jaxkd.graphs import Graph
from jaxkd.losses.basics import weighted_loss, zero_masked
from jaxkd.losses.graphs import edge_high_frequency_loss, edge_low_frequency_loss
from jaxkd.methods.base import batch_weights, combine, from_loss
from jaxkd.methods.glnn import labelled_cross_entropy
from jaxkd.types import Batch, Method, Outputs


@checked(label_weight=probability, temperature=positive)
def ffg2m(label_weight: float = 0.4, temperature: float = 1.5) -> Method:
    """Return λ·(labels) + (1 − λ)·(low frequency + high frequency).

    The defaults are the authors' for a graph convolutional teacher on Cora.

    Args:
        label_weight: λ in [0, 1]; 0 uses no labels.
        temperature: τ > 0 of the high-frequency term.

    Raises:
        ValueError: λ is outside [0, 1], or τ not above 0.
    """
    return combine(
        (label_weight, labelled_cross_entropy()),
        (1 - label_weight, low_frequency()),
        (1 - label_weight, high_frequency(temperature)),
    )


def low_frequency() -> Method:
    """Return `edge_low_frequency_loss`, the mean over edges and a self-loop a node."""

    def loss(student, teacher, batch):
        graph, nodes = batch["graph"], _node_weights(batch, student)
        own = jnp.arange(nodes.shape[0])
        values = edge_low_frequency_loss(
            zero_masked(student.logits, nodes),
            _masked_teacher(teacher, nodes),
            jnp.concatenate([graph.senders, own]),
            jnp.concatenate([graph.receivers, own]),
        )
        weights = jnp.concatenate([_edge_weights(graph, nodes), nodes])
        return weighted_loss(values, weights)

    return from_loss(loss, name="low_frequency")


@checked(temperature=positive)
def high_frequency(temperature: float = 1.5) -> Method:
    """Return `edge_high_frequency_loss`, the mean over edges; 0 if there are none.

    Args:
        temperature: τ > 0.

    Raises:
        ValueError: τ is not above 0.
    """

    def loss(student, teacher, batch):
        graph, nodes = batch["graph"], _node_weights(batch, student)
        values = edge_high_frequency_loss(
            zero_masked(student.logits, nodes),
            _masked_teacher(teacher, nodes),
            graph.senders,
            graph.receivers,
            temperature,
        )
        return weighted_loss(values, _edge_weights(graph, nodes))

    return from_loss(loss, name="high_frequency")


def _node_weights(batch: Batch, student: Outputs) -> Float[Array, "nodes"]:
    shape = student.logits.shape[:1]
    weights = batch_weights(batch, shape)
    return jnp.ones(shape) if weights is None else weights


def _masked_teacher(teacher: Outputs, nodes: Float[Array, "nodes"]) -> Any:
    # The loss says what to do where there is no teacher.
    return None if teacher.logits is None else zero_masked(teacher.logits, nodes)


def _edge_weights(graph: Graph, nodes: Float[Array, "nodes"]) -> Float[Array, "edges"]:
    """Return an edge's weight: the product of its ends', 0 for padding."""
    return graph.edge_weights() * nodes[graph.senders] * nodes[graph.receivers]
