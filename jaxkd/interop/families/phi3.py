"""Phi-3 of `jaxkd.models.llama`: a Llama or Mistral whose files fuse weights."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families import decoder_base
from jaxkd.interop.families.base import LINEAR, Source
from jaxkd.interop.families.decoder_base import (
    family,
    layer_source,
    linear_sources,
    one_rope,
    only,
    written_one_rope,
)
from jaxkd.models.language.llama_config import Config

ARCHITECTURE = "Phi3ForCausalLM"


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    return {
        **one_rope(config),
        "epsilon": config.get("rms_norm_eps", 1e-5),
        "window": config.get("sliding_window"),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    found = written_one_rope(config, ARCHITECTURE, "phi3")
    found["rope_parameters"]["partial_rotary_factor"] = 1.0
    return {**found, "sliding_window": config.attention[0].window}


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array: queries, keys and values are of one tensor."""
    config = Config.of(**arguments)
    group = config.heads // config.kv_heads
    shares = {
        "attention/query": ("self_attn.qkv_proj", 0, Fraction(group + 2, group)),
        "attention/key": ("self_attn.qkv_proj", group, group + 2),
        "attention/value": ("self_attn.qkv_proj", group + 1, group + 2),
        "mlp/gate": ("mlp.gate_up_proj", 0, 2),
        "mlp/up": ("mlp.gate_up_proj", 1, 2),
    }
    others = {"attention/out": "self_attn.o_proj", "mlp/down": "mlp.down_proj"}
    fused = {
        f"{ours}/kernel": layer_source(config, f"{name}.weight", LINEAR, share=(i, n))
        for ours, (name, i, n) in shares.items()
    }
    return decoder_base.tensors(arguments, fused | linear_sources(config, others))


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether Phi-3 has these arguments."""
    return only(arguments, "window")


FAMILY = family([ARCHITECTURE], arguments, config, writes, tensors)
