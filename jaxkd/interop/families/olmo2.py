"""OLMo 2 of `jaxkd.models.llama`: norms after attention and MLP, and of all queries."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import require
from jaxkd.interop.families.decoder_base import (
    family,
    only,
    read_rope,
    sizes,
    written_rope,
    written_sizes,
)
from jaxkd.models.language.llama_config import Config

ARCHITECTURE = "Olmo2ForCausalLM"


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    require(config, "hidden_act", "silu")
    rope = read_rope(config)
    return {
        **sizes(config),
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "epsilon": config.get("rms_norm_eps", 1e-5),
        "qk_norm": "whole",
        "norms": "after",
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    rope = config.attention[0].rope
    assert rope is not None, "of what `writes`"
    return {
        **written_sizes(config, ARCHITECTURE, "olmo2"),
        "hidden_act": "silu",
        "rope_parameters": written_rope(rope),
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether OLMo 2 has these arguments."""
    own = arguments["qk_norm"] == "whole" and arguments["norms"] == "after"
    return own and only(arguments, "qk_norm", "norms")


FAMILY = family([ARCHITECTURE], arguments, config, writes)
