"""CLIP of `jaxkd.models.clip`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import (
    LINEAR,
    Family,
    Source,
    norm_sources,
    require,
)
from jaxkd.interop.families.vit import PATCHES, require_square
from jaxkd.models.parts.tokens import named_size
from jaxkd.models.vision.clip import IMAGE_SIZES, TEXT_SIZES

SIZE = {
    "hidden_size": (768, 512),
    "num_hidden_layers": (12, 12),
    "num_attention_heads": (12, 8),
    "intermediate_size": (3072, 2048),
}
"""What makes up a tower's size, and what it is of images and texts if not given."""

LINEARS = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
NORMS = {"norm1": "layer_norm1", "norm2": "layer_norm2"}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.clip`'s arguments for a config."""
    image, text = (config.get(key) or {} for key in ("vision_config", "text_config"))
    for key, default in (("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-5)):
        require({key: text.get(key, default)}, key, image.get(key, default))
    require_square(image)
    activation = image.get("hidden_act", "quick_gelu")
    require({"hidden_act": activation}, "hidden_act", "quick_gelu", "gelu")
    return {
        "image": tuple(image.get(key, of) for key, (of, _) in SIZE.items()),
        "text": tuple(text.get(key, of) for key, (_, of) in SIZE.items()),
        "features": config.get("projection_dim", 512),
        "image_size": image.get("image_size", 224),
        "patch_size": image.get("patch_size", 32),
        "channels_in": image.get("num_channels", 3),
        "vocabulary": text.get("vocab_size", 49_408),
        "context": text.get("max_position_embeddings", 77),
        "eos": text.get("eos_token_id", 49_407),
        "activation": activation,
        "epsilon": image.get("layer_norm_eps", 1e-5),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    features, epsilon = arguments["features"], arguments["epsilon"]
    shared = {
        "hidden_act": arguments["activation"],
        "layer_norm_eps": epsilon,
        "projection_dim": features,
    }
    sizes = {
        tower: dict(zip(SIZE, named_size(arguments[tower], named, "CLIP"), strict=True))
        for tower, named in (("image", IMAGE_SIZES), ("text", TEXT_SIZES))
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": features,
        "vision_config": {
            "model_type": "clip_vision_model",
            **sizes["image"],
            **shared,
            "image_size": arguments["image_size"],
            "patch_size": arguments["patch_size"],
            "num_channels": arguments["channels_in"],
        },
        "text_config": {
            "model_type": "clip_text_model",
            **sizes["text"],
            **shared,
            "vocab_size": arguments["vocabulary"],
            "max_position_embeddings": arguments["context"],
            "eos_token_id": arguments["eos"],
        },
    }


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    side = arguments["patch_size"]
    image, text = "vision_model.embeddings", "text_model.embeddings"
    found = {
        "logit_scale": Source(("logit_scale",)),
        "image/prefix": Source((f"{image}.class_embedding",)),
        "image/positions": Source((f"{image}.position_embedding.weight",)),
        "image/patches/projection/kernel": Source(
            (f"{image}.patch_embedding.weight",), PATCHES, sizes={"y": side, "x": side}
        ),
        "image/embedder/kernel": Source(("visual_projection.weight",), LINEAR),
        "text/embedder/kernel": Source(("text_projection.weight",), LINEAR),
        "text/embed/embedding": Source((f"{text}.token_embedding.weight",)),
        "text/positions/embedding": Source((f"{text}.position_embedding.weight",)),
    }
    norms = {
        # The name in the files.
        "image/embed_norm": "vision_model.pre_layrnorm",
        "image/norm": "vision_model.post_layernorm",
        "text/norm": "text_model.final_layer_norm",
    }
    for ours, theirs in norms.items():
        found |= norm_sources(ours, theirs)
    for tower, body, named in (
        ("image", "vision_model", IMAGE_SIZES),
        ("text", "text_model", TEXT_SIZES),
    ):
        layers = named_size(arguments[tower], named, "CLIP")[1]
        found |= tower_sources(tower, body, layers)
    return {f"params/{path}": source for path, source in found.items()}


@checked()
def tower_sources(tower: str, body: str, layers: int) -> dict[str, Source]:
    """Return the sources of a tower's blocks.

    Args:
        tower: its path.
        body: what holds it in the files.
        layers: its blocks.
    """
    found = {}
    for names, kind, layout in ((LINEARS, "kernel", LINEAR), (NORMS, "scale", "")):
        for ours, theirs in names.items():
            path, layer = f"{tower}/blocks/{ours}", f"{body}.encoder.layers.{{}}"
            weight, bias = ((f"{layer}.{theirs}.{end}",) for end in ("weight", "bias"))
            found[f"{path}/{kind}"] = Source(weight, layout, layers)
            found[f"{path}/bias"] = Source(bias, layers=layers)
    return found


FAMILY = Family(
    model="clip",
    architectures=("CLIPModel",),
    arguments=arguments,
    config=config,
    tensors=tensors,
    # Files before transformers 4.31 hold the numbers of the positions.
    ignored=(r"(vision|text)_model\.embeddings\.position_ids",),
)
