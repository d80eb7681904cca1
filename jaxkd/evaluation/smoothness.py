"""How smooth a network's predictions are: what Mixup and distillation both change."""

import jax
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.losses.basics import as_float
from jaxkd.losses.divergences import logit_deviation, prediction_entropy


@checked()
def smoothness_metrics(logits: Float[Array, "examples classes"]) -> dict[str, Array]:
    """Return the mean entropy, deviation of the logits, and confidence of predictions.

    Smooth predictions have a high ``entropy`` (in nats), and a low ``logit_deviation``
    and ``confidence`` (the largest probability). Choi et al. 2023, arXiv:2211.03946,
    ask by them what Mixup does to a teacher.

    Args:
        logits: class scores.
    """
    return {
        "entropy": prediction_entropy(logits).mean(),
        "logit_deviation": logit_deviation(logits).mean(),
        "confidence": jax.nn.softmax(as_float(logits)).max(-1).mean(),
    }
