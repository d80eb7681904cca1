"""Llama, Mistral, Qwen2 and Qwen3 of `jaxkd.models.llama`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Family, Source, require
from jaxkd.models.language.rope import RopeScaling

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

HEAD_DIM = {"qwen3": 128}
"""Features of a head where a config does not say, if not the width's share."""

SCALING = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_length": "original_max_position_embeddings",
}
"""`RopeScaling`'s names -> the config's."""

LAYERS = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
HEAD_NORMS = {
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.llama`'s arguments for a config."""
    for key in ("attention_bias", "mlp_bias"):
        require(config, key, False)
    require(config, "hidden_act", "silu")
    # Before transformers 5 the base stood beside the scaling, and either could be left
    # out.
    rope = {"rope_theta": config.get("rope_theta", 10_000.0)}
    rope |= config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    require({"rope_type": kind}, "rope_type", "default", "llama3")
    model_type = config["model_type"]
    return {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads"),
        "hidden": config["intermediate_size"],
        "head_dim": config.get("head_dim") or HEAD_DIM.get(model_type),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None
        if kind == "default"
        else RopeScaling(**{ours: rope[theirs] for ours, theirs in SCALING.items()}),
        "epsilon": config.get("rms_norm_eps", 1e-6),
        "qkv_bias": model_type == "qwen2",
        "qk_norm": model_type == "qwen3",
        "tied": config.get("tie_word_embeddings", False),
        "window": _window(config),
    }


def _window(config: Mapping[str, Any]) -> int | None:
    """Return the window of all layers; Qwen's may differ from layer to layer."""
    window = config.get("sliding_window", 4096)
    model_type, layers = config["model_type"], config["num_hidden_layers"]
    if model_type == "mistral":
        return window
    if model_type == "llama" or not config.get("use_sliding_window"):
        return None
    full = min(config.get("max_window_layers", 28), layers)
    if 0 < full < layers:
        raise ValueError(
            f"config.json has max_window_layers = {full}: the first layers see all "
            "tokens and the others a window, which jaxkd does not build"
        )
    return None if full else window


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model, of the first type that has its switches."""
    bias, norm = arguments["qkv_bias"], arguments["qk_norm"]
    window, scaling = arguments["window"], arguments["rope_scaling"]
    if bias and norm:
        raise ValueError(
            "transformers has no Llama-like model with both qkv_bias and qk_norm: "
            "leave one out to write its format"
        )
    model_type = "qwen3" if norm else "qwen2" if bias else "llama"
    if window is not None and model_type == "llama":
        model_type = "mistral"
    rope = {"rope_theta": arguments["rope_theta"], "rope_type": "default"}
    if scaling is not None:
        rope["rope_type"] = "llama3"
        rope |= {theirs: getattr(scaling, ours) for ours, theirs in SCALING.items()}
    heads, width = arguments["heads"], arguments["width"]
    found = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": arguments["vocabulary"],
        "hidden_size": width,
        "num_hidden_layers": arguments["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": arguments["kv_heads"] or heads,
        "intermediate_size": arguments["hidden"],
        "head_dim": arguments["head_dim"] or width // heads,
        "hidden_act": "silu",
        "rms_norm_eps": arguments["epsilon"],
        "rope_parameters": rope,
        "tie_word_embeddings": arguments["tied"],
    }
    if model_type in ("mistral", "qwen2", "qwen3"):
        found["sliding_window"] = window
    if model_type in ("qwen2", "qwen3"):
        found |= {"use_sliding_window": window is not None, "max_window_layers": 0}
    return found


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    layers = arguments["layers"]

    def source(name: str, layout: str = "") -> Source:
        return Source((f"model.layers.{{}}.{name}",), layout, layers)

    blocks = {
        f"{ours}/kernel": source(f"{theirs}.weight", LINEAR)
        for ours, theirs in LAYERS.items()
    }
    norms = NORMS | (HEAD_NORMS if arguments["qk_norm"] else {})
    for ours, theirs in norms.items():
        blocks[f"{ours}/scale"] = source(f"{theirs}.weight")
    if arguments["qkv_bias"]:
        for ours in ("attention/query", "attention/key", "attention/value"):
            blocks[f"{ours}/bias"] = source(f"{LAYERS[ours]}.bias")
    found = {f"params/blocks/{path}": source for path, source in blocks.items()}
    found["params/embed/embedding"] = Source(("model.embed_tokens.weight",))
    found["params/norm/scale"] = Source(("model.norm.weight",))
    if not arguments["tied"]:
        found["params/head/kernel"] = Source(("lm_head.weight",), LINEAR)
    return found


FAMILY = Family(
    model="llama",
    architectures=tuple(ARCHITECTURES.values()),
    arguments=arguments,
    config=config,
    tensors=tensors,
    renamed=((r"^model\.", ""),),
    # Some files repeat a tied head; old ones hold the rotations' frequencies.
    ignored=(r"lm_head\.weight", r".*\.rotary_emb\.inv_freq"),
)
