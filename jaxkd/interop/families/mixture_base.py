"""What the folders of decoders with mixtures of experts share."""

from collections.abc import Mapping

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Source
from jaxkd.interop.families.decoder_base import layer_source
from jaxkd.models.language.llama_config import Config

ROUTED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
"""Our names -> an expert's tensors, in most files."""


@checked()
def expert_sources(
    config: Config, name: str, names: Mapping[str, str] = ROUTED
) -> dict[str, Source]:
    """Return the sources of a router and of experts with tensors of their own.

    Args:
        config: of the model.
        name: of a layer's mixture.
        names: our names -> an expert's tensors.
    """
    assert config.mixture is not None
    experts = config.mixture.experts
    found = {
        f"mlp/{ours}": layer_source(
            config, f"{name}.experts.{{}}.{theirs}.weight", LINEAR, experts=experts
        )
        for ours, theirs in names.items()
    }
    found["mlp/router/kernel"] = layer_source(config, f"{name}.gate.weight", LINEAR)
    return found
