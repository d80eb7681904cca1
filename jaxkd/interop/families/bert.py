"""BERT, RoBERTa, DistilBERT, ELECTRA, Longformer and BigBird of `jaxkd.models.bert`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxkd.arguments import checked
from jaxkd.interop.families.base import LINEAR, Family, Source, require
from jaxkd.models.language.bert import has_pooler

HEADS = {
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "masked_lm": "ForMaskedLM",
    "replaced_tokens": "ForPreTraining",
    None: "Model",
}
"""Our heads -> the ends of the architectures' names. What a discriminator is trained on
before is ELECTRA's alone."""


class Names(NamedTuple):
    """How the files of one variant call things.

    Attributes:
        architecture: how its name starts.
        base: of the encoder's tensors under a head.
        pooler: of an encoder without a head, or with any.
        sequence: the layer before a sequence's classes, and the classes.
        masked: the layer, the norm and the bias of the head that fills in blanks.
        layer: of a block's tensors.
        activation: of the MLPs, in the config.
    """

    architecture: str
    base: str
    pooler: str = "pooler.dense"
    sequence: tuple[str, str] = ("classifier.dense", "classifier.out_proj")
    masked: tuple[str, str, str] = (
        "lm_head.dense",
        "lm_head.layer_norm",
        "lm_head.bias",
    )
    layer: str = "encoder.layer.{}"
    activation: str = "gelu"


MASKED = (
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
)
VARIANTS = {
    "bert": Names(
        "Bert", "bert", sequence=("bert.pooler.dense", "classifier"), masked=MASKED
    ),
    "roberta": Names("Roberta", "roberta"),
    "distilbert": Names(
        "DistilBert",
        "distilbert",
        sequence=("pre_classifier", "classifier"),
        masked=("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        layer="transformer.layer.{}",
    ),
    "electra": Names(
        "Electra",
        "electra",
        masked=(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
        ),
    ),
    "longformer": Names("Longformer", "longformer"),
    "big_bird": Names(
        "BigBird", "bert", "pooler", masked=MASKED, activation="gelu_new"
    ),
}
"""By model type."""

LAYERS = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
}
GLOBAL = {
    f"{ours}_global": f"{theirs}_global" for ours, theirs in [*LAYERS.items()][:3]
}
"""Longformer's projections of global tokens."""

NORMS = {
    "attention_norm": "attention.output.LayerNorm",
    "mlp_norm": "output.LayerNorm",
}
DISTIL_LAYERS = {
    "attention/query": "attention.q_lin",
    "attention/key": "attention.k_lin",
    "attention/value": "attention.v_lin",
    "attention/out": "attention.out_lin",
    "mlp/up": "ffn.lin1",
    "mlp/down": "ffn.lin2",
}
DISTIL_NORMS = {"attention_norm": "sa_layer_norm", "mlp_norm": "output_layer_norm"}
TABLES = {
    "embed": "word_embeddings",
    "positions": "position_embeddings",
    "types": "token_type_embeddings",
}

SIZES = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
DISTIL_SIZES = SIZES | {
    "width": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "hidden": "hidden_dim",
}
"""Our arguments -> the keys of a config."""

FORMS = {"original_full": "full", "block_sparse": "block_sparse"}
"""BigBird's names of our forms of attention."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.bert`'s arguments for a config."""
    variant, architecture = config["model_type"], config["architectures"][0]
    require({"model_type": variant}, "model_type", *VARIANTS)
    names, distil = VARIANTS[variant], variant == "distilbert"
    require(config, "activation" if distil else "hidden_act", names.activation)
    require(config, "position_embedding_type", "absolute")
    require(config, "is_decoder", False)
    require(config, "add_cross_attention", False)
    ends = {names.architecture + end: head for head, end in HEADS.items()}
    if variant != "electra":
        del ends[names.architecture + HEADS["replaced_tokens"]]
    require({"architectures": architecture}, "architectures", *ends)
    head = ends[architecture]
    if head == "masked_lm":
        require(config, "tie_word_embeddings", True)
    sizes = DISTIL_SIZES if distil else SIZES
    # RoBERTa's padding has a position of its own, after which the others come.
    shifted = variant in ("roberta", "longformer")
    found = {ours: config[theirs] for ours, theirs in sizes.items()}
    found |= {
        "head": head,
        "classes": len(config.get("id2label") or range(2)),
        "variant": variant,
        "types": 0 if distil else config.get("type_vocab_size", 2),
        "first_position": config["pad_token_id"] + 1 if shifted else 0,
        "epsilon": 1e-12 if distil else config.get("layer_norm_eps", 1e-12),
    }
    if variant == "electra":
        found["embedding_width"] = config["embedding_size"]
    if variant == "longformer":
        found |= {"attention": "sliding_window", "window": _window(config)}
    if variant == "big_bird":
        require(config, "attention_type", *FORMS)
        require(config, "rescale_embeddings", False)
        require(config, "use_bias", True)
        found["attention"] = FORMS[config.get("attention_type", "block_sparse")]
        found["block"] = config.get("block_size", 64)
        found["random_blocks"] = config.get("num_random_blocks", 3)
    return found


def _window(config: Mapping[str, Any]) -> int:
    """Return the window of all blocks."""
    windows = config.get("attention_window", 512)
    windows = windows if isinstance(windows, list) else [windows]
    if len({*windows}) != 1:
        raise ValueError(
            f"config.json has attention_window = {windows}, but jaxkd builds one for "
            "all blocks"
        )
    return windows[0]


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    variant, layers = arguments["variant"], arguments["layers"]
    names, distil = VARIANTS[variant], variant == "distilbert"
    found = {
        "architectures": [names.architecture + HEADS[arguments["head"]]],
        "model_type": variant,
        "activation" if distil else "hidden_act": names.activation,
        "pad_token_id": max(arguments["first_position"] - 1, 0),
    }
    sizes = DISTIL_SIZES if distil else SIZES
    found |= {theirs: arguments[ours] for ours, theirs in sizes.items()}
    if not distil:
        found["type_vocab_size"] = arguments["types"]
        found["layer_norm_eps"] = arguments["epsilon"]
    if variant == "electra":
        found["embedding_size"] = arguments["embedding_width"] or arguments["width"]
    if variant == "longformer":
        found["attention_window"] = [arguments["window"]] * layers
    if variant == "big_bird":
        forms = {ours: theirs for theirs, ours in FORMS.items()}
        found["attention_type"] = forms[arguments["attention"]]
        found["block_size"] = arguments["block"]
        found["num_random_blocks"] = arguments["random_blocks"]
    if (arguments["head"] or "").endswith("classification"):
        labels = {i: f"LABEL_{i}" for i in range(arguments["classes"])}
        found["id2label"] = {str(i): label for i, label in labels.items()}
        found["label2id"] = {label: i for i, label in labels.items()}
    return found


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether transformers' model of that variant has such parts."""
    variant, head = arguments["variant"], arguments["head"]
    forms = {"longformer": ("sliding_window",), "big_bird": ("full", "block_sparse")}
    width = arguments["width"]
    return (
        arguments["attention"] in forms.get(variant, ("full",))
        and (arguments["types"] == 0) == (variant == "distilbert")
        and (arguments["embedding_width"] in (None, width) or variant == "electra")
        and (arguments["epsilon"] == 1e-12 or variant != "distilbert")
        and (head != "replaced_tokens" or variant == "electra")
        and (arguments["first_position"] > 0) == (variant in ("roberta", "longformer"))
    )


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    variant, head, layers = (arguments[key] for key in ("variant", "head", "layers"))
    names, distil = VARIANTS[variant], variant == "distilbert"
    base = "" if head is None else f"{names.base}."
    found = {
        f"embeddings/{ours}/embedding": Source((f"{base}embeddings.{theirs}.weight",))
        for ours, theirs in TABLES.items()
        if ours != "types" or not distil
    }
    found |= _norm("embeddings/norm", f"{base}embeddings.LayerNorm")
    if arguments["embedding_width"] not in (None, arguments["width"]):
        found |= _linear("embeddings/projection", f"{base}embeddings_project")
    linear = DISTIL_LAYERS if distil else LAYERS
    linear = linear | (GLOBAL if variant == "longformer" else {})
    for ours, theirs in linear.items():
        found |= _linear(f"blocks/{ours}", f"{base}{names.layer}.{theirs}", layers)
    for ours, theirs in (DISTIL_NORMS if distil else NORMS).items():
        found |= _norm(f"blocks/{ours}", f"{base}{names.layer}.{theirs}", layers)
    pooler = f"{base}{names.pooler}"
    if head == "masked_lm":
        dense, norm, bias = names.masked
        found |= _linear("transform", dense) | _norm("transform_norm", norm)
        found["bias"] = Source((bias,))
    elif head == "token_classification":
        found |= _linear("head", "classifier")
    elif head == "replaced_tokens":
        found |= _linear("transform", "discriminator_predictions.dense")
        found |= _linear("head", "discriminator_predictions.dense_prediction")
    elif head == "sequence_classification":
        pooler, classes = names.sequence
        found |= _linear("head", classes)
    if has_pooler(head, variant, arguments["pooler"]):
        found |= _linear("pooler", pooler)
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
    architectures=(
        *(
            names.architecture + end
            for names in VARIANTS.values()
            for head, end in HEADS.items()
            if head != "replaced_tokens"
        ),
        "ElectraForPreTraining",
    ),
    arguments=arguments,
    config=config,
    tensors=tensors,
    writes=writes,
    renamed=(
        (r"^((ro|distil)?bert|electra|longformer)\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    # Files hold the heads and poolers that the model was trained with before, the tied
    # head anew, and the numbers of the positions.
    ignored=(
        r"(.*\.)?embeddings\.position_ids",
        r"(.*\.)?pooler\..*",
        r"(cls|lm_head|(pre_)?classifier|vocab_(transform|layer_norm|projector))\..*",
        r"(generator|discriminator)_predictions\..*",
        r"generator_lm_head\..*",
    ),
)
