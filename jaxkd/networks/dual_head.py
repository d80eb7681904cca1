"""A student with two heads: one learns from labels, the other from a teacher."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, finite
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import l2_normalize
from jaxkd.losses.dual_head import dual_head_log_probs
from jaxkd.network import Network
from jaxkd.types import Outputs

CE_TAP, KD_TAP = "ce.logits", "kd.logits"
"""The taps of the two heads' logits."""

Head = Mapping[str, Any]
"""A linear layer's ``kernel`` (features, classes) and ``bias`` (classes,)."""


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
    prototypes: Float[Array, "features classes"] | None = None,
) -> Network:
    """Return the network with a second linear head, for `methods.dho`.

    The network's own classifier is the head that learns from labels; the second reads
    the same pooled features. The logits are the log-probabilities of their mixture (see
    `losses.dual_head_log_probs`). Taps: the network's, and ``ce.logits`` and
    ``kd.logits`` (batch, classes).

    A vision-language model has no classifier, but its text embeddings of the classes
    are one: with ``prototypes`` both heads are new and start as these, with biases 0,
    and ``normalize_to`` lets the second begin as the zero-shot classifier, which is its
    teacher (Kang et al. 2025, arXiv:2505.07675).

    Args:
        network: any with a tap of pooled features (batch, features).
        features: of the tap.
        classes: logits of the network.
        tap: what the heads read, such as CLIP's ``image.projected``.
        alpha: α in [0, 1], the share of the head that learns from labels.
        beta: β > 0, a temperature of the second head where the student is used.
        normalize_to: length that the second head's inputs are brought to; 100 suits
            heads that start as a vision-language model's text embeddings.
        prototypes: what both heads start as, such as `teachers.class_prototypes`; None
            for the network's own classifier, and a second head that is drawn.

    Raises:
        ValueError: no such tap, or prototypes of another shape; from ``apply``, α
            outside [0, 1], β not above 0, or another number of classes.
    """
    if tap not in network.taps:
        raise ValueError(unknown_name("tap", tap, network.taps))
    if prototypes is not None and jnp.shape(prototypes) != (features, classes):
        raise ValueError(
            f"prototypes has shape {jnp.shape(prototypes)}, but {features} features "
            f"and {classes} classes need {(features, classes)}: give one column a class"
        )

    def init(key):
        own, other = jax.random.split(key)
        variables = network.init(own)
        names = ("kd_head",) if prototypes is None else ("ce_head", "kd_head")
        if prototypes is None:
            draw = jax.nn.initializers.lecun_normal()
            kernel = draw(other, (features, classes))
        else:
            kernel = jnp.array(prototypes, jnp.float32)
        heads = {n: {"kernel": kernel, "bias": jnp.zeros(classes)} for n in names}
        return {
            "params": {"network": variables["params"], **heads},
            "stats": variables["stats"],
        }

    def apply(variables, inputs, *, taps=(), **kwargs):
        for name in taps:
            if name not in valid:
                raise ValueError(unknown_name("tap", name, valid))
        own = tuple(t for t in taps if t not in (CE_TAP, KD_TAP))
        params = variables["params"]
        outputs, changed = network.apply(
            {"params": params["network"], "stats": variables["stats"]},
            inputs,
            taps=tuple(dict.fromkeys((*own, tap))),
            **kwargs,
        )
        x, kd = outputs.features[tap], params["kd_head"]
        if prototypes is None:
            logits = outputs.logits, _linear(kd, x, normalize_to)
        else:
            heads = {"ce": params["ce_head"], "kd": kd}
            logits = dual_head_apply(heads, x, normalize_to)
        found = {**outputs.features, **dict(zip((CE_TAP, KD_TAP), logits, strict=True))}
        mixed = dual_head_log_probs(*logits, alpha, beta)
        return Outputs(mixed, {name: found[name] for name in taps}), {
            **variables,
            "stats": changed["stats"],
        }

    valid = (*network.taps, CE_TAP, KD_TAP)
    return Network(init, apply, valid, network.reads, axes=network.axes)


@checked()
def dual_head_apply(
    heads: Mapping[str, Head],
    features: Float[Array, "*batch features"],
    normalize_to: float | None = None,
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"]]:
    """Return both heads' logits: W_ce·z + b_ce and W_kd·z' + b_kd.

    Kang et al. 2025, arXiv:2505.07675, where z' is z brought to a length, for
    the second head alone. Eq. 10 also normalises W_kd; their code, which
    is followed here, does not.

    Args:
        heads: ``ce`` and ``kd``, each ``{"kernel", "bias"}``.
        features: z.
        normalize_to: the length of z'; None for z as it is.
    """
    return _linear(heads["ce"], features), _linear(heads["kd"], features, normalize_to)


def _linear(head: Head, x: Array, normalize_to: float | None = None) -> Array:
    if normalize_to is not None:
        x = (normalize_to * l2_normalize(x)).astype(x.dtype)
    return x @ head["kernel"] + head["bias"]
