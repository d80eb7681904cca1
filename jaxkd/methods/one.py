"""On-the-fly native ensemble: branches that learn from their gated ensemble."""

import jax.numpy as jnp

from jaxkd.arguments import checked, positive
from jaxkd.losses.online import one_loss
from jaxkd.methods.base import from_loss
from jaxkd.methods.dml import peer_logits, peer_taps
from jaxkd.types import Method


@checked(temperature=positive)
def one(branches: int = 3, temperature: float = 3.0) -> Method:
    """Return ONE: cross-entropy of branches and ensemble, and KL between them.

    Lan et al. 2018, arXiv:1806.04606. The student is a branched network such as
    ``models.one_cnn``, with taps ``0.logits`` … and ``gate`` (batch, branches).

    Args:
        branches: of the network, at least 2.
        temperature: T > 0.
    """

    def loss(student, teacher, batch):
        return one_loss(
            jnp.stack(peer_logits(student, branches)),
            student.features["gate"],
            batch["label"],
            temperature,
        )

    return from_loss(loss, name="one", student_taps=(*peer_taps(branches), "gate"))
