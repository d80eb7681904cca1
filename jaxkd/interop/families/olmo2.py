"""OLMo 2 of `jaxkd.models.llama`: norms after attention and MLP, and of all queries."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.decoder_base import (
    family,
    one_rope,
    only,
    written_one_rope,
)
from jaxkd.models.language.llama_config import Config

ARCHITECTURE = "Olmo2ForCausalLM"


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    return {
        **one_rope(config),
        "epsilon": config.get("rms_norm_eps", 1e-5),
        "qk_norm": "whole",
        "norms": "after",
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    return {
        **written_one_rope(config, ARCHITECTURE, "olmo2"),
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether OLMo 2 has these arguments."""
    own = arguments["qk_norm"] == "whole" and arguments["norms"] == "after"
    return own and only(arguments, "qk_norm", "norms")


FAMILY = family([ARCHITECTURE], arguments, config, writes)
