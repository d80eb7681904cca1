"""gpt-oss of `jaxkd.models.llama`: sinks, windows in every other layer, experts."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Source, require
from jaxkd.interop.families.decoder_base import (
    alike,
    family,
    layer_source,
    layer_types,
    only,
    read_rope,
    sizes,
    tensors,
    written_rope,
    written_sizes,
    written_types,
)
from jaxkd.models.language.llama_config import AttentionKind, Config
from jaxkd.models.parts.moe import Mixture
from jaxkd.models.parts.recorded import as_record

ARCHITECTURE = "GptOssForCausalLM"
BOTH = "{axes}(hidden two) -> {axes}(two hidden)"
"""The features of gate and up alternate in one tensor."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    require(config, "swiglu_alpha", 1.702)
    require(config, "swiglu_limit", 7.0)
    rope = read_rope(config, 150_000.0)
    window = config.get("sliding_window", 128)
    sliding = layer_types(config, lambda layer: layer % 2 == 0)
    return {
        **sizes(config, 64, attention_bias=True),
        "epsilon": config.get("rms_norm_eps", 1e-5),
        "attention": tuple(AttentionKind(window if s else None, rope) for s in sliding),
        "qkv_bias": True,
        "out_bias": True,
        "sinks": True,
        "mixture": _mixture(
            config["intermediate_size"],
            config.get("num_local_experts", 128),
            config.get("num_experts_per_tok", config.get("experts_per_token", 4)),
        ),
    }


def _mixture(hidden: int, experts: int, k: int) -> Mixture:
    return Mixture(hidden, experts, k, activation="clamped_swiglu")


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    rope, mixture = config.attention[0].rope, config.mixture
    assert rope is not None, "of what `writes`"
    assert mixture is not None
    return {
        **written_sizes(config, ARCHITECTURE, "gpt_oss"),
        "attention_bias": True,
        "hidden_act": "silu",
        "rope_parameters": written_rope(rope),
        "sliding_window": max(kind.window or 0 for kind in config.attention),
        "layer_types": written_types(config.attention),
        "num_local_experts": mixture.experts,
        "num_experts_per_tok": mixture.k,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether gpt-oss has these arguments."""
    mixture = as_record(arguments["mixture"], Mixture)
    own = ("qkv_bias", "out_bias", "sinks")
    if mixture is None or not all(arguments[name] for name in own):
        return False
    kinds = Config.of(**arguments).attention
    ropes = {kind.rope for kind in kinds}
    return (
        only(arguments, *own, "window", "attention", "mixture")
        and mixture == _mixture(arguments["hidden"], mixture.experts, mixture.k)
        and len(ropes) == 1
        and None not in ropes
        and alike(kinds)
    )


@checked()
def sources(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    config = Config.of(**arguments)

    def source(name: str, *layout: str, **others: Any) -> Source:
        return layer_source(config, f"mlp.{name}", *layout, **others)

    mixture = {
        "router/kernel": source("router.weight", LINEAR),
        "router/bias": source("router.bias"),
        "down": source("experts.down_proj"),
        "down_bias": source("experts.down_proj_bias"),
    }
    for part, ours in enumerate(("gate", "up")):
        of = {"share": (part, 2), "sizes": {"two": 2}}
        both = BOTH.format(axes="experts embed ")
        mixture[ours] = source("experts.gate_up_proj", both, **of)
        both = BOTH.format(axes="experts ")
        mixture[f"{ours}_bias"] = source("experts.gate_up_proj_bias", both, **of)
    mixture = {f"mlp/{path}": source for path, source in mixture.items()}
    return tensors(arguments, mixture=mixture)


FAMILY = family([ARCHITECTURE], arguments, config, writes, sources)
