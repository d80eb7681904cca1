"""Deep mutual learning between peers."""

from jaxkd.arguments import checked
from jaxkd.losses.online import dml_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method, Outputs


@checked()
def peer_logits(outputs: Outputs, peers: int) -> list:
    """Return the logits of each member of an ensemble, from its taps."""
    return [outputs.features[f"{i}.logits"] for i in range(peers)]


@checked()
def peer_taps(peers: int) -> tuple[str, ...]:
    """Return the taps of each member's logits."""
    return tuple(f"{i}.logits" for i in range(peers))


@checked()
def dml(peers: int = 2) -> Method:
    """Return deep mutual learning: each peer learns from the labels and the others.

    Zhang et al. 2018, arXiv:1706.00384, simultaneous updates, T = 1. The student is
    ``networks.ensemble`` of the peers, without a teacher; the loss is the sum over
    peers.

    Args:
        peers: members of the ensemble, at least 2.
    """
    return from_loss(
        lambda student, teacher, batch: sum(
            dml_loss(peer_logits(student, peers), batch["label"])
        ),
        name="dml",
        student_taps=peer_taps(peers),
    )
