"""Mamba-2 of `jaxkd.models.mamba2`."""

import math
from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Family, Source, require

BLOCKS = {
    "norm/scale": "norm.weight",
    "mixer/conv/kernel": "mixer.conv1d.weight",
    "mixer/time_bias": "mixer.dt_bias",
    "mixer/log_rate": "mixer.A_log",
    "mixer/skip": "mixer.D",
    "mixer/norm/scale": "mixer.norm.weight",
    "mixer/in_projection/kernel": "mixer.in_proj.weight",
    "mixer/out/kernel": "mixer.out_proj.weight",
}
LAYOUTS = {
    "mixer/conv/kernel": "channels one window -> window one channels",
    "mixer/in_projection/kernel": LINEAR,
    "mixer/out/kernel": LINEAR,
}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.mamba2`'s arguments for a config."""
    require(config, "hidden_act", "silu", "swish")
    require(config, "rms_norm", True)
    low, high = config.get("time_step_limit", (0.0, math.inf))
    # JSON has no infinity, for which transformers writes {"__float__": "Infinity"}.
    if isinstance(high, Mapping):
        high = float(high["__float__"])
    return {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_heads"],
        "head_dim": config.get("head_dim", 64),
        "state_size": config.get("state_size", 128),
        "groups": config.get("n_groups", 8),
        "window": config.get("conv_kernel", 4),
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
        "time_step_limit": (low, high),
        "epsilon": config.get("layer_norm_epsilon", 1e-5),
        "float32_residual": config.get("residual_in_fp32", True),
        "tied": config.get("tie_word_embeddings", False),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    width, head_dim = arguments["width"], arguments["head_dim"]
    heads = arguments["heads"] or 2 * width // head_dim
    if heads * head_dim % width:
        raise ValueError(
            f"transformers has no Mamba-2 whose heads x head_dim, {heads} x {head_dim},"
            f" is no multiple of the width {width}"
        )
    found = {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "vocab_size": arguments["vocabulary"],
        "hidden_size": width,
        "num_hidden_layers": arguments["layers"],
        "num_heads": heads,
        "head_dim": head_dim,
        "expand": heads * head_dim // width,
        "state_size": arguments["state_size"],
        "n_groups": arguments["groups"],
        "conv_kernel": arguments["window"],
        "use_bias": arguments["bias"],
        "use_conv_bias": arguments["conv_bias"],
        "hidden_act": "silu",
        "layer_norm_epsilon": arguments["epsilon"],
        "residual_in_fp32": arguments["float32_residual"],
        "tie_word_embeddings": arguments["tied"],
    }
    low, high = arguments["time_step_limit"]
    if (low, high) != (0.0, math.inf):
        written = {"__float__": "Infinity"} if math.isinf(high) else high
        found["time_step_limit"] = [low, written]
    return found


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    blocks = dict(BLOCKS)
    if arguments["conv_bias"]:
        blocks["mixer/conv/bias"] = "mixer.conv1d.bias"
    if arguments["bias"]:
        blocks["mixer/in_projection/bias"] = "mixer.in_proj.bias"
        blocks["mixer/out/bias"] = "mixer.out_proj.bias"
    found = {
        f"params/blocks/{ours}": Source(
            (f"backbone.layers.{{}}.{theirs}",),
            LAYOUTS.get(ours, ""),
            arguments["layers"],
        )
        for ours, theirs in blocks.items()
    }
    found["params/embed/embedding"] = Source(("backbone.embeddings.weight",))
    found["params/norm/scale"] = Source(("backbone.norm_f.weight",))
    if not arguments["tied"]:
        found["params/head/kernel"] = Source(("lm_head.weight",), LINEAR)
    return found


FAMILY = Family(
    model="mamba2",
    architectures=("Mamba2ForCausalLM",),
    arguments=arguments,
    config=config,
    tensors=tensors,
    # The authors' files call it embedding.
    renamed=((r"^backbone\.", ""), (r"^embedding\.", "embeddings.")),
    ignored=(r"lm_head\.weight",),
)
