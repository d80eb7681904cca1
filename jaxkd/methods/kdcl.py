"""Collaborative learning: peers learn from a target made of all of them."""

from typing import Literal

from jaxkd.arguments import checked, positive
from jaxkd.losses.divergences import cross_entropy_loss, kd_loss
from jaxkd.losses.online import kdcl_targets
from jaxkd.methods.base import example_weights, from_loss
from jaxkd.methods.dml import peer_logits, peer_taps
from jaxkd.types import Method


@checked(temperature=positive)
def kdcl(
    peers: int = 2,
    kind: Literal["naive", "minlogit", "linear"] = "minlogit",
    temperature: float = 2.0,
    weight: float = 1.0,
) -> Method:
    """Return collaborative learning towards an ensemble target.

    Guo et al. 2020, CVPR, "Online Knowledge Distillation via Collaborative Learning".
    The student is ``networks.ensemble`` of the peers, without a teacher; the loss is
    the sum over peers of cross-entropy and weight·T²·KL(target ‖ peer).

    Args:
        peers: members of the ensemble, at least 2.
        kind: how the target is made of the peers' logits.
        temperature: T > 0.
        weight: λ of the KL term.
    """

    def loss(student, teacher, batch):
        logits = peer_logits(student, peers)
        target = kdcl_targets(
            logits, batch["label"], kind, weights=example_weights(batch, student)
        )
        return sum(
            cross_entropy_loss(z, batch["label"])
            + weight * kd_loss(z, target, temperature)
            for z in logits
        )

    return from_loss(loss, name="kdcl", student_taps=peer_taps(peers))
