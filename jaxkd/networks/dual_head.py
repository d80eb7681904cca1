"""A student with two heads: its own learns from labels, the other from a teacher."""

import jax
import jax.numpy as jnp

from jaxkd.arguments import checked, finite
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import l2_normalize
from jaxkd.losses.dual_head import dual_head_log_probs
from jaxkd.network import Network
from jaxkd.types import Outputs

CE_TAP, KD_TAP = "ce.logits", "kd.logits"
"""The taps of the two heads' logits."""


@checked(alpha=finite)
def dual_head(
    network: Network,
    features: int,
    classes: int,
    *,
    tap: str = "pooled",
    alpha: float = 0.5,
    beta: float = 1.0,
    normalize_to: float | None = None,
) -> Network:
    """Return the network with a second linear head, for `methods.dho`.

    The network's own classifier is the head that learns from labels; the second reads
    the same pooled features. The logits are the log-probabilities of their mixture (see
    `losses.dual_head_log_probs`). Taps: the network's, and ``ce.logits`` and
    ``kd.logits`` (batch, classes).

    Args:
        network: any with a tap of pooled features (batch, features).
        features: of the tap.
        classes: logits of the network.
        tap: what the second head reads.
        alpha: α in [0, 1], the share of the network's own classifier.
        beta: β > 0, a temperature of the second head where the student is used.
        normalize_to: length that the second head's inputs are brought to; 100 suits
            heads that start as a vision-language model's text embeddings.

    Raises:
        ValueError: no such tap; from ``apply``, α outside [0, 1], β not above 0, or
            another number of classes.
    """
    if tap not in network.taps:
        raise ValueError(unknown_name("tap", tap, network.taps))

    def init(key):
        own, other = jax.random.split(key)
        variables = network.init(own)
        kernel = jax.nn.initializers.lecun_normal()(other, (features, classes))
        head = {"kernel": kernel, "bias": jnp.zeros(classes)}
        return {
            "params": {"network": variables["params"], "kd_head": head},
            "stats": variables["stats"],
        }

    def apply(variables, inputs, *, taps=(), **kwargs):
        for name in taps:
            if name not in valid:
                raise ValueError(unknown_name("tap", name, valid))
        own = tuple(t for t in taps if t not in (CE_TAP, KD_TAP))
        outputs, changed = network.apply(
            {"params": variables["params"]["network"], "stats": variables["stats"]},
            inputs,
            taps=tuple(dict.fromkeys((*own, tap))),
            **kwargs,
        )
        x = outputs.features[tap]
        if normalize_to is not None:
            x = (normalize_to * l2_normalize(x)).astype(x.dtype)
        head = variables["params"]["kd_head"]
        found = {
            **outputs.features,
            CE_TAP: outputs.logits,
            KD_TAP: x @ head["kernel"] + head["bias"],
        }
        mixed = dual_head_log_probs(found[CE_TAP], found[KD_TAP], alpha, beta)
        return Outputs(mixed, {name: found[name] for name in taps}), {
            **variables,
            "stats": changed["stats"],
        }

    valid = (*network.taps, CE_TAP, KD_TAP)
    return Network(init, apply, valid, network.reads, axes=network.axes)
