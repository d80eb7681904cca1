"""Class activation maps as a feature of any network that pools before its head."""

from dataclasses import replace

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.losses.channels import class_activation_maps
from jaxkd.network import Network
from jaxkd.types import Outputs


@checked()
def with_class_maps(
    network: Network, tap: str, head: str = "fc", name: str = "cam"
) -> Network:
    """Return the network with its class activation maps as one more tap.

    Zhou et al. 2016, arXiv:1512.04150, Eq. 2: the last linear layer applied at every
    position. Gradients reach that layer's kernel through the maps as well.

    Args:
        network: ends in global average pooling and one linear layer.
        tap: the map before pooling, (batch, height, width, channels).
        head: the linear layer's name in the parameters.
        name: of the new tap, (batch, height, width, classes).

    Raises:
        ValueError: the network lacks the tap; from ``apply``, its parameters lack the
            head.
    """
    if tap not in network.taps:
        raise ValueError(unknown_name("tap", tap, network.taps))

    def apply(variables, inputs, *, taps=(), **kwargs):
        asked = dict.fromkeys(tap if t == name else t for t in taps)
        outputs, changed = network.apply(variables, inputs, taps=tuple(asked), **kwargs)
        features = {t: outputs.features[t] for t in taps if t != name}
        if name in taps:
            if head not in variables["params"]:
                raise ValueError(unknown_name("head", head, variables["params"]))
            kernel = variables["params"][head]["kernel"]
            features[name] = class_activation_maps(outputs.features[tap], kernel)
        return Outputs(outputs.logits, features), changed

    taps = (*network.taps, name)
    return replace(network, apply=apply, taps=taps, spec=None, cuts=())
