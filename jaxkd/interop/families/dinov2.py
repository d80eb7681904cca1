"""DINOv2 of `jaxkd.models.dinov2`, with its classifier or without."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import (
    Family,
    Source,
    class_count,
    class_names,
    linear_sources,
    norm_sources,
    require,
)
from jaxkd.interop.families.vit import patch_sources, require_square
from jaxkd.models.parts.tokens import named_size
from jaxkd.models.vision.dinov2 import SIZES

CLASSIFIER, BODY = "Dinov2ForImageClassification", "Dinov2Model"
"""The architectures."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.dinov2`'s arguments for a config."""
    require(config, "hidden_act", "gelu")
    require(config, "qkv_bias", True)
    require_square(config)
    size = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    classified = config["architectures"][0] == CLASSIFIER
    return {
        "size": tuple(config.get(key, usual) for key, usual in size.items()),
        "classes": class_count(config) if classified else None,
        "image_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", 14),
        "channels_in": config.get("num_channels", 3),
        "mlp_ratio": config.get("mlp_ratio", 4),
        "swiglu": config.get("use_swiglu_ffn", False),
        "layer_scale": config.get("layerscale_value", 1.0),
        "mask_token": config.get("use_mask_token", True),
        "epsilon": config.get("layer_norm_eps", 1e-6),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    width, layers, heads = named_size(arguments["size"], SIZES, "DINOv2")
    classes = arguments["classes"]
    return {
        "architectures": [BODY if classes is None else CLASSIFIER],
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": arguments["image_size"],
        "patch_size": arguments["patch_size"],
        "num_channels": arguments["channels_in"],
        "mlp_ratio": arguments["mlp_ratio"],
        "use_swiglu_ffn": arguments["swiglu"],
        "layerscale_value": arguments["layer_scale"],
        "use_mask_token": arguments["mask_token"],
        "layer_norm_eps": arguments["epsilon"],
        "hidden_act": "gelu",
        "qkv_bias": True,
        **({} if classes is None else class_names(classes)),
    }


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    _, layers, _ = named_size(arguments["size"], SIZES, "DINOv2")
    base = "" if arguments["classes"] is None else "dinov2."
    embeddings = f"{base}embeddings"
    found = {
        "prefix": Source((f"{embeddings}.cls_token",)),
        "positions": Source((f"{embeddings}.position_embeddings",)),
        **patch_sources(
            "patches/projection",
            f"{embeddings}.patch_embeddings.projection",
            arguments["patch_size"],
        ),
        **norm_sources("norm", f"{base}layernorm"),
    }
    if arguments["mask_token"]:
        found["mask"] = Source((f"{embeddings}.mask_token",))
    if arguments["classes"] is not None:
        found |= linear_sources("head", "classifier")
    swiglu = arguments["swiglu"]
    mlp = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
    for i in range(layers):
        ours, theirs = f"blocks/{i}", f"{base}encoder.layer.{i}"
        heads = f"{theirs}.attention.attention"
        found |= linear_sources(
            f"{ours}/attention/qkv",
            *(f"{heads}.{x}" for x in ("query", "key", "value")),
        )
        output = f"{theirs}.attention.output.dense"
        found |= linear_sources(f"{ours}/attention/projection", output)
        for number, name in enumerate(mlp, start=1):
            found |= linear_sources(f"{ours}/mlp/fc{number}", f"{theirs}.mlp.{name}")
            found |= norm_sources(f"{ours}/norm{number}", f"{theirs}.norm{number}")
            scale = f"{theirs}.layer_scale{number}.lambda1"
            found[f"{ours}/scale{number}"] = Source((scale,))
    return {f"params/{path}": source for path, source in found.items()}


FAMILY = Family(
    model="dinov2",
    architectures=(CLASSIFIER, BODY),
    arguments=arguments,
    config=config,
    tensors=tensors,
    renamed=((r"^dinov2\.", ""),),
    # A body is taken out from under its classifier.
    ignored=(r"classifier\.(weight|bias)",),
)
