"""SmolLM3 of `jaxkd.models.llama`: a Llama with layers that have no rotations."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import require
from jaxkd.interop.families.decoder_base import (
    family,
    layer_types,
    only,
    read_rope,
    sizes,
    written_rope,
    written_sizes,
    written_types,
)
from jaxkd.models.language.llama_config import AttentionKind, Config

ARCHITECTURE = "SmolLM3ForCausalLM"


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    require(config, "hidden_act", "silu")
    interval, layers = (
        config.get("no_rope_layer_interval", 4),
        range(config["num_hidden_layers"]),
    )
    turned = config.get("no_rope_layers") or [(i + 1) % interval > 0 for i in layers]
    if not isinstance(turned, list) or len(turned) != len(layers):
        raise ValueError(f"no_rope_layers must have {len(layers)}, got {turned!r:.80}")
    for layer in turned:
        require({"no_rope_layers": layer}, "no_rope_layers", 0, 1)
    window = config.get("sliding_window")
    window = window if config.get("use_sliding_window") else None
    sliding = layer_types(
        config, lambda layer: window is not None and not turned[layer]
    )
    rope = read_rope(config, 2e6)
    return {
        **sizes(config),
        "tied": config.get("tie_word_embeddings", True),
        "attention": tuple(
            AttentionKind(window if sliding[i] else None, rope if turned[i] else None)
            for i in layers
        ),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    config = Config.of(**arguments)
    window = max((kind.window or 0 for kind in config.attention), default=0) or None
    rope = next(kind.rope for kind in config.attention if kind.rope is not None)
    return {
        **written_sizes(config, ARCHITECTURE, "smollm3"),
        "hidden_act": "silu",
        "layer_types": written_types(config.attention),
        "no_rope_layers": [int(kind.rope is not None) for kind in config.attention],
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "rope_parameters": written_rope(rope),
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether SmolLM3 has these arguments, and no simpler model."""
    kinds = {*Config.of(**arguments).attention}
    ropes, windows = (
        {getattr(kind, name) for kind in kinds} - {None} for name in ("rope", "window")
    )
    one = len(ropes) == 1 and len(windows) < 2
    return only(arguments, "window", "attention") and one and len(kinds) > 1


FAMILY = family([ARCHITECTURE], arguments, config, writes)
