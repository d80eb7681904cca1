"""MIXSTD: labels and teacher at the temperature of each example's own deviation."""

from jaxkd.arguments import checked
from jaxkd.methods.base import combine
from jaxkd.methods.cross_entropy import cross_entropy
from jaxkd.methods.kd import kd
from jaxkd.methods.lskd import lskd
from jaxkd.types import Method


@checked()
def mixstd(gamma: float = 0.1, alpha: float = 0.9) -> Method:
    """Return γ·CE(y, u_s) + α·KL(u_t ‖ u_s) of logits over their deviation, u = z/std.

    Choi et al. 2023, arXiv:2211.03946, for batches that ``data.Mixup(…, mixed=0.1,
    per_example=True)`` mixes in part. Each example's deviation is the temperature, of
    the label's loss too, so that one is never 0; there is no factor T². Logits are
    centred as in `lskd`, which no softmax sees.

    Args:
        gamma: weight of the labels, class indices or probabilities.
        alpha: weight of the teacher.
    """
    return lskd(combine((gamma, cross_entropy()), (alpha, kd(1.0))))
