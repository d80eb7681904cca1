"""Qwen3-MoE of `jaxkd.models.llama`: Qwen3 with a mixture of many small experts."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import Source, require
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
from jaxkd.models.parts.routers import RouterName

ARCHITECTURE = "Qwen3MoeForCausalLM"
ROUTERS: Mapping[bool, RouterName] = {True: "softmax_of_top", False: "top_of_softmax"}
"""Of ``norm_topk_prob``."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    require(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    require({"mlp_only_layers": dense}, "mlp_only_layers", [*range(len(dense))])
    # Released configs say num_experts, and those that transformers 5 writes the other.
    experts = config.get("num_experts", config.get("num_local_experts", 128))
    return {
        **one_rope(config),
        "qk_norm": True,
        "window": config.get("sliding_window")
        if config.get("use_sliding_window")
        else None,
        "mixture": Mixture(
            config.get("moe_intermediate_size", 768),
            experts,
            config.get("num_experts_per_tok", 8),
            router=ROUTERS[config.get("norm_topk_prob", False)],
            activation="swiglu",
            use_bias=False,
        ),
        "dense_layers": len(dense),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    kind, mixture = config.attention[0], config.mixture
    assert mixture is not None
    return {
        **written_one_rope(config, ARCHITECTURE, "qwen3_moe"),
        "sliding_window": kind.window,
        "use_sliding_window": kind.window is not None,
        "moe_intermediate_size": mixture.hidden,
        "num_local_experts": mixture.experts,
        "num_experts_per_tok": mixture.k,
        "norm_topk_prob": mixture.router == ROUTERS[True],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [*range(config.dense_layers)],
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether Qwen3-MoE has these arguments."""
    mixture = as_record(arguments["mixture"], Mixture)
    if mixture is None or mixture.router not in ROUTERS.values():
        return False
    own = only(arguments, "qk_norm", "window", "mixture", "dense_layers")
    return own and arguments["qk_norm"] is True and mixture == _mixture(mixture)


def _mixture(given: Mixture) -> Mixture:
    """Return a mixture whose sizes and router alone are those given."""
    return Mixture(
        *(given.hidden, given.experts, given.k, given.router),
        activation="swiglu",
        use_bias=False,
    )


@checked()
def sources(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    mixture = expert_sources(Config.of(**arguments), "mlp")
    return tensors(arguments, mixture=mixture)


FAMILY = family([ARCHITECTURE], arguments, config, writes, sources)
