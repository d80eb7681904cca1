"""Llama, Mistral, Qwen2 and Qwen3 of `jaxkd.models.llama`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import require
from jaxkd.interop.families.decoder_base import (
    alike,
    family,
    layer_types,
    one_rope,
    only,
    read_rope,
    written_one_rope,
    written_types,
)
from jaxkd.models.language.llama_config import AttentionKind, Config

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

HEAD_DIM = {"qwen3": 128}
"""Features of a head where a config does not say, if not the width's share."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    model_type = config["model_type"]
    require(config, "model_type", *ARCHITECTURES)
    windows = _windows(config)
    found = {
        **one_rope(config, head_dim=HEAD_DIM.get(model_type)),
        "qkv_bias": model_type == "qwen2",
        "qk_norm": model_type == "qwen3",
        "window": windows[0],
    }
    if len({*windows}) > 1:
        rope = read_rope(config)
        found["attention"] = tuple(AttentionKind(window, rope) for window in windows)
    return found


def _windows(config: Mapping[str, Any]) -> list[int | None]:
    """Return the layers' windows; Qwen's first layers may have none."""
    window = config.get("sliding_window", 4096)
    model_type, layers = config["model_type"], config["num_hidden_layers"]
    if model_type == "mistral":
        return layers * [window]
    if model_type == "llama" or not config.get("use_sliding_window"):
        return layers * [None]
    full = config.get("max_window_layers", 28)
    sliding = layer_types(config, lambda layer: layer >= full)
    return [window if has else None for has in sliding]


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model, of the first type that has its switches."""
    config = Config.of(**arguments)
    bias, norm = config.qkv_bias, config.qk_norm
    if bias and norm:
        raise ValueError(
            "transformers has no Llama-like model with both qkv_bias and qk_norm: "
            "leave one out to write its format"
        )
    windows = [kind.window for kind in config.attention]
    window = max((window or 0 for window in windows), default=0) or None
    model_type = "qwen3" if norm else "qwen2" if bias else "llama"
    if window is not None and model_type == "llama":
        model_type = "mistral"
    found = written_one_rope(config, ARCHITECTURES[model_type], model_type)
    if model_type in ("mistral", "qwen2", "qwen3"):
        found["sliding_window"] = window
    if model_type in ("qwen2", "qwen3"):
        found |= {
            "use_sliding_window": window is not None,
            "max_window_layers": windows.count(None) if window else 0,
            "layer_types": written_types(config.attention),
        }
    return found


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether one of these models has the arguments."""
    config = Config.of(**arguments)
    kinds, ropes = {*config.attention}, {kind.rope for kind in config.attention}
    qwen = bool(config.qkv_bias or config.qk_norm)
    return (
        only(arguments, "window", "attention", "qkv_bias", "qk_norm")
        and config.qk_norm != "whole"
        and len(ropes) == 1
        and None not in ropes
        and (len(kinds) == 1 or (qwen and alike(config.attention)))
    )


FAMILY = family([*ARCHITECTURES.values()], arguments, config, writes)
