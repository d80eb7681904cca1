"""GPT-2 of `jaxkd.models.gpt2`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Family, Source, require

LAYERS = {
    "attention/out": "attn.c_proj",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
}
NORMS = {"blocks/attention_norm": "h.{}.ln_1", "blocks/mlp_norm": "h.{}.ln_2"}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.gpt2`'s arguments for a config."""
    require(config, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    require(config, "scale_attn_weights", True)
    require(config, "scale_attn_by_inverse_layer_idx", False)
    require(config, "add_cross_attention", False)
    return {
        "vocabulary": config["vocab_size"],
        "positions": config["n_positions"],
        "width": config["n_embd"],
        "layers": config["n_layer"],
        "heads": config["n_head"],
        "hidden": config.get("n_inner"),
        "epsilon": config.get("layer_norm_epsilon", 1e-5),
        "tied": config.get("tie_word_embeddings", True),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": arguments["vocabulary"],
        "n_positions": arguments["positions"],
        "n_embd": arguments["width"],
        "n_layer": arguments["layers"],
        "n_head": arguments["heads"],
        "n_inner": arguments["hidden"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": arguments["epsilon"],
        "tie_word_embeddings": arguments["tied"],
    }


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array; GPT-2's kernels lie as ours do."""
    layers = arguments["layers"]
    found = {
        "embed/embedding": Source(("transformer.wte.weight",)),
        "positions/embedding": Source(("transformer.wpe.weight",)),
        "norm/scale": Source(("transformer.ln_f.weight",)),
        "norm/bias": Source(("transformer.ln_f.bias",)),
    }
    for kind, theirs in (("kernel", "weight"), ("bias", "bias")):
        for ours, name in LAYERS.items():
            names = (f"transformer.h.{{}}.{name}.{theirs}",)
            found[f"blocks/{ours}/{kind}"] = Source(names, layers=layers)
        for i, ours in enumerate(("query", "key", "value")):
            names = (f"transformer.h.{{}}.attn.c_attn.{theirs}",)
            found[f"blocks/attention/{ours}/{kind}"] = Source(
                names, layers=layers, share=(i, 3)
            )
    for ours, name in NORMS.items():
        for kind, theirs in (("scale", "weight"), ("bias", "bias")):
            found[f"{ours}/{kind}"] = Source(
                (f"transformer.{name}.{theirs}",), layers=layers
            )
    if not arguments["tied"]:
        found["head/kernel"] = Source(("lm_head.weight",), LINEAR)
    return {f"params/{path}": source for path, source in found.items()}


FAMILY = Family(
    model="gpt2",
    architectures=("GPT2LMHeadModel",),
    arguments=arguments,
    config=config,
    tensors=tensors,
    renamed=((r"^transformer\.", ""),),
    # Some files repeat the tied head; old ones hold the causal masks.
    ignored=(r"lm_head\.weight", r".*h\.\d+\.attn\.(bias|masked_bias)"),
)
