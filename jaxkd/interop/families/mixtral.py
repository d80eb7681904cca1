"""Mixtral of `jaxkd.models.llama`: Mistral with a mixture of experts in every layer."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import Source
from jaxkd.interop.families.decoder_base import (
    family,
    one_rope,
    only,
    tensors,
    written_one_rope,
)
from jaxkd.interop.families.mixture_base import expert_sources
from jaxkd.models.language.llama_config import Config
from jaxkd.models.parts.moe import Mixture
from jaxkd.models.parts.recorded import as_record

ARCHITECTURE = "MixtralForCausalLM"
EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    return {
        **one_rope(config, 1e6),
        "epsilon": config.get("rms_norm_eps", 1e-5),
        "window": config.get("sliding_window"),
        "mixture": Mixture(
            config["intermediate_size"],
            config.get("num_local_experts", 8),
            config.get("num_experts_per_tok", 2),
            activation="swiglu",
            use_bias=False,
        ),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    kind, mixture = config.attention[0], config.mixture
    assert mixture is not None
    return {
        **written_one_rope(config, ARCHITECTURE, "mixtral"),
        "sliding_window": kind.window,
        "num_local_experts": mixture.experts,
        "num_experts_per_tok": mixture.k,
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether Mixtral has these arguments."""
    mixture = as_record(arguments["mixture"], Mixture)
    if mixture is None:
        return False
    return only(arguments, "window", "mixture") and mixture == Mixture(
        *(arguments["hidden"], mixture.experts, mixture.k),
        activation="swiglu",
        use_bias=False,
    )


@checked()
def sources(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    config = Config.of(**arguments)
    mixture = expert_sources(config, "block_sparse_moe", EXPERT)
    return tensors(arguments, mixture=mixture)


FAMILY = family([ARCHITECTURE], arguments, config, writes, sources)
