"""Balanced divergences between a student and a teacher that learn together."""

from jaxkd.arguments import checked, positive
from jaxkd.losses.online import bdkd_loss
from jaxkd.methods.base import from_loss
from jaxkd.methods.dml import peer_logits, peer_taps
from jaxkd.types import Method


@checked(temperature=positive)
def bdkd(
    temperature: float = 2.0,
    delta: float = 2.0,
    weight: float = 1.0,
    *,
    softness: float = 0.0,
    invert: bool = False,
) -> Method:
    """Return BD-KD: the student gets forward and reverse KL, weighed by confidence.

    Amara et al. 2022, arXiv:2212.12965. The student is ``networks.ensemble([student,
    teacher])``, without a teacher: both start untrained, and the first is deployed,
    by ``networks.with_logits(ensemble, "0.logits")``.

    Args:
        temperature: T > 0.
        delta: δ ≥ 1, the larger of the two weights; 1 weighs both KLs alike.
        weight: λ of the divergences.
        softness: see `losses.balance_weights`.
        invert: swaps the two weights.
    """

    def loss(student, teacher, batch):
        z_s, z_t = peer_logits(student, 2)
        label = batch["label"]
        return sum(
            bdkd_loss(z_s, z_t, label, temperature, delta, weight, softness, invert)
        )

    return from_loss(loss, name="bdkd", student_taps=peer_taps(2))
