"""A student of more outputs than classes, whose classes are sums of outputs."""

from dataclasses import replace

from jaxkd.arguments import checked, count
from jaxkd.losses.subclasses import subclass_log_probs
from jaxkd.network import Network
from jaxkd.types import Outputs

SUBCLASS_TAP = "subclass.logits"
"""The tap of all outputs."""


@checked(classes=count)
def with_subclasses(network: Network, classes: int) -> Network:
    """Return the network as one of fewer classes, each the sum of some of its outputs.

    The logits become the classes' log-probabilities, so that it is tested, and trained
    on labels, as any other. The outputs are the tap ``subclass.logits``, for
    `methods.lelp`: only the last layer is wider than that of a student without.

    Args:
        network: of classes · sub-classes outputs; c·S + j is kind j of class c.
        classes: of the result.

    Raises:
        ValueError: from ``apply``, the outputs are no multiple of the classes.
    """

    def apply(variables, inputs, *, taps=(), **kwargs):
        own = tuple(tap for tap in taps if tap != SUBCLASS_TAP)
        outputs, changed = network.apply(variables, inputs, taps=own, **kwargs)
        features = {**outputs.features, SUBCLASS_TAP: outputs.logits}
        logits = subclass_log_probs(outputs.logits, classes)
        return Outputs(logits, {tap: features[tap] for tap in taps}), changed

    taps = (*network.taps, SUBCLASS_TAP)
    return replace(
        network, apply=apply, taps=taps, spec=None, cuts=(), module=None, origin=None
    )
