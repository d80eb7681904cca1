"""GLNN: a perceptron learns a graph network's answers, node by node.

Zhang et al. 2022, arXiv:2110.08727. A whole graph is one batch: ``graph``, ``label``
and ``labelled`` (1 for the nodes whose labels may be used), and ``mask`` where nodes
are padding.
"""

from jaxkd.arguments import checked, probability
from jaxkd.losses.basics import as_float, weighted_loss, zero_masked
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.methods.base import batch_weights, combine, from_loss
from jaxkd.methods.kd import kd
from jaxkd.types import Method


@checked(label_weight=probability)
def glnn(label_weight: float = 0.0) -> Method:
    """Return λ·(labels) + (1 − λ)·KL(teacher ‖ student), the mean over all nodes.

    Args:
        label_weight: λ in [0, 1]; 0 uses no labels.

    Raises:
        ValueError: λ is outside [0, 1].
    """
    return combine(
        (label_weight, labelled_cross_entropy()),
        (1 - label_weight, kd(temperature=1.0)),
    )


def labelled_cross_entropy() -> Method:
    """Return the cross-entropy, the mean over the nodes in ``batch["labelled"]``.

    Raises:
        ValueError: from the loss, a batch without ``labelled``.
    """

    def loss(student, teacher, batch):
        if "labelled" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}, but a graph's labels need labelled: 1 "
                "for the nodes whose labels may be used, 0 for the others"
            )
        weights = as_float(batch["labelled"])
        nodes = batch_weights(batch, student.logits.shape[:-1])
        weights = weights if nodes is None else weights * nodes
        # What the student says of the other nodes is no part of this loss.
        logits = zero_masked(student.logits, weights)
        return weighted_loss(cross_entropy_loss(logits, batch["label"]), weights)

    return from_loss(loss, name="labels")
