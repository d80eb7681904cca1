"""A mixture of two language models' next-token distributions, to sample from."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxkd.arguments import checked, probability
from jaxkd.losses.basics import log_softmax, logsumexp
from jaxkd.network import Network, axes_of
from jaxkd.types import Outputs


@flax.struct.dataclass
class PairCache:
    """The caches of both networks.

    Attributes:
        first: of the first network.
        second: of the second.
    """

    first: Any
    second: Any

    def grown(self, slots: int) -> "PairCache":
        """Return both with room for as many more tokens."""
        return PairCache(self.first.grown(slots), self.second.grown(slots))


@checked(share=probability)
def mixed(first: Network, second: Network, share: float) -> Network:
    """Return the network whose probabilities are (1 − share)·first + share·second.

    Its logits are log-probabilities, and its variables ``{"first", "second"}``, each as
    that network has them. MiniLLM samples from student and teacher at a share of 0.2.
    Where one network has more logits, as padding, it is of those that both have.

    Args:
        first: such as the student.
        second: such as the teacher, with the same tokenizer.
        share: of the second, in (0, 1).

    Raises:
        ValueError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    networks = {"first": first, "second": second}
    logarithms = jnp.log1p(-share), jnp.log(share)

    reads = tuple(dict.fromkeys((*first.reads, *second.reads)))

    def init(key):
        keys = jax.random.split(key)
        return {
            name: network.init(k)
            for (name, network), k in zip(networks.items(), keys, strict=True)
        }

    def apply(variables, inputs, *, taps=(), **kwargs):
        cache = inputs.get("cache")
        outputs = []
        for name, network in networks.items():
            own = inputs if cache is None else {**inputs, "cache": getattr(cache, name)}
            outputs.append(network.apply(variables[name], own, taps=taps, **kwargs)[0])
        size = min(found.logits.shape[-1] for found in outputs)
        logits = logsumexp(
            jnp.stack(
                [
                    log_softmax(found.logits[..., :size].astype(jnp.float32))
                    + logarithm
                    for found, logarithm in zip(outputs, logarithms, strict=True)
                ]
            ),
            axis=0,
        )
        features = {tap: PairCache(*(o.features[tap] for o in outputs)) for tap in taps}
        return Outputs(logits, features), variables

    return Network(init, apply, ("cache",), reads, axes=axes_of(first, second))
