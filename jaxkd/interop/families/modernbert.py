"""ModernBERT of `jaxkd.models.modernbert`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Family, Source, require

ARCHITECTURES = {
    "ModernBertForSequenceClassification": "sequence_classification",
    "ModernBertForTokenClassification": "token_classification",
    "ModernBertForMaskedLM": "masked_lm",
    "ModernBertModel": None,
}
SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
"""Our arguments -> the keys of a config."""

KINDS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
"""Kinds of blocks -> the base of their rotations before transformers 5."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.modernbert`'s arguments for a config."""
    for bias in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"):
        require(config, bias, False)
    require(config, "decoder_bias", True)
    require(config, "tie_word_embeddings", True)
    for activation in ("hidden_activation", "classifier_activation"):
        require(config, activation, "gelu")
    every = config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types")
    if kinds:  # As many as there are, not as the config says: it may be anything.
        require({"layer_types": kinds}, "layer_types", _kinds(len(kinds), every))
        require(config, "num_hidden_layers", len(kinds))
    found = {ours: config[theirs] for ours, theirs in SIZES.items()}
    return found | {
        "head": ARCHITECTURES[config["architectures"][0]],
        "classes": len(config.get("id2label") or range(2)),
        "pooling": config.get("classifier_pooling", "cls"),
        "global_every": every,
        "window": config.get("local_attention", 128),
        "rope_theta": _theta(config, "full_attention", 160_000.0),
        "local_rope_theta": _theta(config, "sliding_attention", 10_000.0),
        "epsilon": config.get("norm_eps", 1e-5),
    }


def _kinds(layers: int, every: int) -> list[str]:
    full, sliding = KINDS
    return [sliding if layer % every else full for layer in range(layers)]


def _theta(config: Mapping[str, Any], kind: str, default: float) -> float:
    rope = (config.get("rope_parameters") or {}).get(kind) or {}
    require(rope, "rope_type", "default")
    return rope.get("rope_theta") or config.get(KINDS[kind]) or default


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model, for transformers of before 5 as well."""
    heads = {head: name for name, head in ARCHITECTURES.items()}
    layers, every = arguments["layers"], arguments["global_every"]
    thetas = arguments["rope_theta"], arguments["local_rope_theta"]
    found = {
        "architectures": [heads[arguments["head"]]],
        "model_type": "modernbert",
        **{theirs: arguments[ours] for ours, theirs in SIZES.items()},
        "classifier_pooling": arguments["pooling"],
        "global_attn_every_n_layers": every,
        "layer_types": _kinds(layers, every),
        "local_attention": arguments["window"],
        "norm_eps": arguments["epsilon"],
        "rope_parameters": {
            kind: {"rope_theta": theta, "rope_type": "default"}
            for kind, theta in zip(KINDS, thetas, strict=True)
        },
        **dict(zip(KINDS.values(), thetas, strict=True)),
    }
    if (arguments["head"] or "").endswith("classification"):
        labels = [f"LABEL_{i}" for i in range(arguments["classes"])]
        found["id2label"] = {str(i): label for i, label in enumerate(labels)}
        found["label2id"] = {label: i for i, label in enumerate(labels)}
    return found


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    head, layers = arguments["head"], arguments["layers"]
    base = "" if head is None else "model."

    def block(theirs: str, **options: Any) -> Source:
        return Source((f"{base}layers.{{}}.{theirs}.weight",), layers=layers, **options)

    found = {
        "embed/embedding": Source((f"{base}embeddings.tok_embeddings.weight",)),
        "embed_norm/scale": Source((f"{base}embeddings.norm.weight",)),
        "norm/scale": Source((f"{base}final_norm.weight",)),
        # The first block has none.
        "attention_scales": block("attn_norm")._replace(layers=layers - 1, first=1),
        "blocks/attention/out/kernel": block("attn.Wo", layout=LINEAR),
        "blocks/mlp/down/kernel": block("mlp.Wo", layout=LINEAR),
        "blocks/mlp_norm/scale": block("mlp_norm"),
    }
    fused = {
        "attn.Wqkv": ("attention/query", "attention/key", "attention/value"),
        "mlp.Wi": ("mlp/gate", "mlp/up"),
    }
    for theirs, parts in fused.items():
        for i, part in enumerate(parts):
            share = i, len(parts)
            source = block(theirs, layout=LINEAR, share=share)
            found[f"blocks/{part}/kernel"] = source
    if head is not None:
        found["transform/kernel"] = Source(("head.dense.weight",), LINEAR)
        found["transform_norm/scale"] = Source(("head.norm.weight",))
    if head == "masked_lm":
        found["bias"] = Source(("decoder.bias",))
    elif head is not None:
        found["head/kernel"] = Source(("classifier.weight",), LINEAR)
        found["head/bias"] = Source(("classifier.bias",))
    return {f"params/{path}": source for path, source in found.items()}


FAMILY = Family(
    model="modernbert",
    architectures=tuple(ARCHITECTURES),
    arguments=arguments,
    config=config,
    tensors=tensors,
    renamed=((r"^model\.", ""),),
    # The tied head anew, and heads that the model was trained with before.
    ignored=(r"(decoder|head|classifier)\..*",),
)
