"""BERT and RoBERTa of `jaxkd.models.bert`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Family, Source, require

HEADS = {
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "masked_lm": "ForMaskedLM",
    None: "Model",
}
"""Our heads -> the ends of the architectures' names."""

KINDS = {"bert": "Bert", "roberta": "Roberta"}
"""Model types -> how the architectures' names start."""

LAYERS = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
}
NORMS = {
    "attention_norm": "attention.output.LayerNorm",
    "mlp_norm": "output.LayerNorm",
}
TABLES = {
    "embed": "word_embeddings",
    "positions": "position_embeddings",
    "types": "token_type_embeddings",
}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.bert`'s arguments for a config."""
    require(config, "hidden_act", "gelu")
    require(config, "position_embedding_type", "absolute")
    require(config, "is_decoder", False)
    require(config, "add_cross_attention", False)
    kind, architecture = config["model_type"], config["architectures"][0]
    require({"model_type": kind}, "model_type", *KINDS)
    ends = {KINDS[kind] + end: head for head, end in HEADS.items()}
    require({"architectures": architecture}, "architectures", *ends)
    head = ends[architecture]
    if head == "masked_lm":
        require(config, "tie_word_embeddings", True)
    return {
        "vocabulary": config["vocab_size"],
        "positions": config["max_position_embeddings"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "head": head,
        "classes": len(config.get("id2label") or range(2)),
        "types": config.get("type_vocab_size", 2),
        # RoBERTa's padding has a position of its own, after which the others come.
        "first_position": config["pad_token_id"] + 1 if kind == "roberta" else 0,
        "epsilon": config.get("layer_norm_eps", 1e-12),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    kind = "roberta" if arguments["first_position"] else "bert"
    labels = {i: f"LABEL_{i}" for i in range(arguments["classes"])}
    found = {
        "architectures": [KINDS[kind] + HEADS[arguments["head"]]],
        "model_type": kind,
        "vocab_size": arguments["vocabulary"],
        "max_position_embeddings": arguments["positions"],
        "hidden_size": arguments["width"],
        "num_hidden_layers": arguments["layers"],
        "num_attention_heads": arguments["heads"],
        "intermediate_size": arguments["hidden"],
        "hidden_act": "gelu",
        "type_vocab_size": arguments["types"],
        "layer_norm_eps": arguments["epsilon"],
        "pad_token_id": max(arguments["first_position"] - 1, 0),
    }
    if (arguments["head"] or "").endswith("classification"):
        found["id2label"] = {str(i): label for i, label in labels.items()}
        found["label2id"] = {label: i for i, label in labels.items()}
    return found


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    kind = "roberta" if arguments["first_position"] else "bert"
    head, layers = arguments["head"], arguments["layers"]
    base = "" if head is None else f"{kind}."
    found = {
        f"embeddings/{ours}/embedding": Source((f"{base}embeddings.{theirs}.weight",))
        for ours, theirs in TABLES.items()
    }
    found |= _norm("embeddings/norm", f"{base}embeddings.LayerNorm")
    layer = f"{base}encoder.layer.{{}}"
    for ours, theirs in LAYERS.items():
        found |= _linear(f"blocks/{ours}", f"{layer}.{theirs}", layers)
    for ours, theirs in NORMS.items():
        found |= _norm(f"blocks/{ours}", f"{layer}.{theirs}", layers)
    if head == "masked_lm":
        start, norm = {
            "bert": ("cls.predictions", "transform.LayerNorm"),
            "roberta": ("lm_head", "layer_norm"),
        }[kind]
        dense = "transform.dense" if kind == "bert" else "dense"
        found |= _linear("transform", f"{start}.{dense}")
        found |= _norm("transform_norm", f"{start}.{norm}")
        found["bias"] = Source((f"{start}.bias",))
    elif head == "token_classification":
        found |= _linear("head", "classifier")
    elif head == "sequence_classification":
        bert = kind == "bert"
        found |= _linear("pooler", "bert.pooler.dense" if bert else "classifier.dense")
        found |= _linear("head", "classifier" if bert else "classifier.out_proj")
    elif arguments["pooler"]:
        found |= _linear("pooler", "pooler.dense")
    return {f"params/{path}": source for path, source in found.items()}


def _linear(ours: str, theirs: str, layers: int | None = None) -> dict[str, Source]:
    return {
        f"{ours}/kernel": Source((f"{theirs}.weight",), LINEAR, layers),
        f"{ours}/bias": Source((f"{theirs}.bias",), layers=layers),
    }


def _norm(ours: str, theirs: str, layers: int | None = None) -> dict[str, Source]:
    return {
        f"{ours}/scale": Source((f"{theirs}.weight",), layers=layers),
        f"{ours}/bias": Source((f"{theirs}.bias",), layers=layers),
    }


FAMILY = Family(
    model="bert",
    architectures=tuple(
        kind + end for kind in KINDS.values() for end in HEADS.values()
    ),
    arguments=arguments,
    config=config,
    tensors=tensors,
    renamed=(
        (r"^(ro)?bert\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    # Files hold the heads and poolers that the model was trained with before, the tied
    # head anew, and the numbers of the positions.
    ignored=(
        r"(.*\.)?embeddings\.position_ids",
        r"(.*\.)?pooler\..*",
        r"(cls|lm_head|classifier)\..*",
    ),
)
