"""Granite of `jaxkd.models.llama`: a Llama whose activations are multiplied."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.decoder_base import (
    family,
    one_rope,
    only,
    written_one_rope,
)
from jaxkd.models.language.llama_config import Config, Multipliers

ARCHITECTURE = "GraniteForCausalLM"


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    return {
        **one_rope(config),
        "multipliers": Multipliers(
            embed=config.get("embedding_multiplier", 1.0),
            scores=config.get("attention_multiplier", 1.0),
            residual=config.get("residual_multiplier", 1.0),
            logits=1 / config.get("logits_scaling", 1.0),
        ),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    return {
        **written_one_rope(config, ARCHITECTURE, "granite"),
        "embedding_multiplier": config.multipliers.embed,
        "attention_multiplier": config.scores.scale,
        "residual_multiplier": config.multipliers.residual,
        "logits_scaling": round(1 / config.multipliers.logits, 6),
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether Granite has these arguments, and no simpler model."""
    given = arguments["multipliers"] is not None
    return given and only(arguments, "multipliers")


FAMILY = family([ARCHITECTURE], arguments, config, writes)
