"""Gemma 2 and Gemma 3 (text) of `jaxkd.models.llama`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import require
from jaxkd.interop.families.decoder_base import (
    FULL,
    SLIDING,
    alike,
    family,
    layer_types,
    only,
    read_rope,
    sizes,
    written_rope,
    written_sizes,
    written_types,
)
from jaxkd.models.language.llama_config import (
    AttentionKind,
    Config,
    Multipliers,
    SoftCaps,
)
from jaxkd.models.language.rope import Rope

ARCHITECTURES = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}

HEAD_DIM = 256
"""Features of a head, and the number whose root scores are divided by, where a config
does not say."""

SWITCHES = {"activation": "gelu_tanh", "norms": "both", "zero_centred": True}
OWN = "window", "attention", "qk_norm", "multipliers", "soft_caps"
CAPS = "attn_logit_softcapping", "final_logit_softcapping"


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    third = config["model_type"] == "gemma3_text"
    require(config, "hidden_activation", "gelu_pytorch_tanh", None)
    require(config, "use_bidirectional_attention", False, None)
    pattern = config.get("sliding_window_pattern", 6) if third else 2
    window = config.get("sliding_window", 4096)
    rope = _ropes(config) if third else 2 * (read_rope(config),)
    kinds = [
        AttentionKind(window if sliding else None, rope[sliding])
        for sliding in layer_types(config, lambda layer: (layer + 1) % pattern > 0)
    ]
    caps = (
        config.get(key, None if third else cap)
        for key, cap in zip(CAPS, (50.0, 30.0), strict=True)
    )
    scalar = config.get("query_pre_attn_scalar", HEAD_DIM)
    return {
        **sizes(config, HEAD_DIM),
        "tied": config.get("tie_word_embeddings", True),
        "qk_norm": third,
        "attention": tuple(kinds),
        **SWITCHES,
        "multipliers": Multipliers(config["hidden_size"] ** 0.5, scalar**-0.5),
        "soft_caps": SoftCaps(*caps),
    }


def _ropes(config: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """Return Gemma 3's rotations of layers without and with a window.

    Before transformers 5 a config had the base of the latter beside the others'.
    """
    rope = config.get("rope_parameters") or {}
    if FULL in rope:
        return read_rope({"rope_parameters": rope[FULL]}, 1e6), read_rope(
            {"rope_parameters": rope[SLIDING]}
        )
    return read_rope(config, 1e6), Rope(config.get("rope_local_base_freq", 1e4))


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model: Gemma 3's where queries are normalised."""
    config = Config.of(**arguments)
    model_type = "gemma3_text" if config.qk_norm else "gemma2"
    kinds = {kind.window is None: kind for kind in config.attention}
    ropes = {
        FULL if full else SLIDING: written_rope(kind.rope)
        for full, kind in kinds.items()
        if kind.rope is not None
    }
    if not config.qk_norm:
        ropes = next(iter(ropes.values()))
    scores = config.multipliers.scores
    assert scores is not None, "of what `writes`"
    return {
        **written_sizes(config, ARCHITECTURES[model_type], model_type),
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": written_types(config.attention),
        "sliding_window": kinds[False].window if False in kinds else None,
        "rope_parameters": ropes,
        "query_pre_attn_scalar": round(scores**-2, 6),
        "attn_logit_softcapping": config.soft_caps.scores,
        "final_logit_softcapping": config.soft_caps.logits,
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether Gemma 2 or 3 has these arguments."""
    config = Config.of(**arguments)
    scores, ropes = config.multipliers.scores, {kind.rope for kind in config.attention}
    return (
        only(arguments, *OWN, *SWITCHES)
        and all(getattr(config, name) == value for name, value in SWITCHES.items())
        and config.multipliers == Multipliers(config.width**0.5, scores)
        and config.qk_norm != "whole"
        and scores is not None
        and None not in ropes
        and alike(config.attention)
        and (config.qk_norm or len(ropes) == 1)
    )


FAMILY = family([*ARCHITECTURES.values()], arguments, config, writes)
