"""Swin transformers of `jaxkd.models.swin`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import (
    LINEAR,
    Family,
    Source,
    class_count,
    class_names,
    linear_sources,
    norm_sources,
    require,
)
from jaxkd.interop.families.vit import NORMS, patch_sources, require_square
from jaxkd.models.vision.swin import EPSILON, sizes

LINEARS = {
    "attention/qkv": tuple(
        f"attention.self.{part}" for part in ("query", "key", "value")
    ),
    "attention/projection": ("attention.output.dense",),
    "mlp/fc1": ("intermediate.dense",),
    "mlp/fc2": ("output.dense",),
}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.swin`'s arguments for a config."""
    require(config, "hidden_act", "gelu")
    require(config, "qkv_bias", True)
    require(config, "use_absolute_embeddings", False)
    require(config, "mlp_ratio", 4.0)
    require(config, "layer_norm_eps", EPSILON)
    require_square(config)
    depths = config.get("depths", (2, 2, 6, 2))
    heads = config.get("num_heads", (3, 6, 12, 24))
    return {
        "size": (config.get("embed_dim", 96), *depths, *heads),
        "classes": class_count(config),
        "image_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", 4),
        "window": config.get("window_size", 7),
        "channels_in": config.get("num_channels", 3),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    width, depths, heads = sizes(arguments["size"])
    return {
        "architectures": ["SwinForImageClassification"],
        "model_type": "swin",
        "embed_dim": width,
        "depths": list(depths),
        "num_heads": list(heads),
        "image_size": arguments["image_size"],
        "patch_size": arguments["patch_size"],
        "window_size": arguments["window"],
        "num_channels": arguments["channels_in"],
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": EPSILON,
        **class_names(arguments["classes"]),
    }


@checked()
def writes(arguments: Mapping[str, Any]) -> bool:
    """Return whether no stage is smaller than a window, which transformers keeps."""
    halvings = len(sizes(arguments["size"]).depths) - 1
    last = arguments["image_size"] // arguments["patch_size"] // 2**halvings
    return last >= arguments["window"]


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    depths = sizes(arguments["size"]).depths
    found = patch_sources(
        "patches/projection",
        "swin.embeddings.patch_embeddings.projection",
        arguments["patch_size"],
    )
    found |= norm_sources("norm0", "swin.embeddings.norm")
    found |= norm_sources("norm", "swin.layernorm")
    found |= linear_sources("head", "classifier")
    for stage, depth in enumerate(depths):
        layer = f"swin.encoder.layers.{stage}"
        if stage + 1 < len(depths):
            ours, theirs = f"merging/{stage}", f"{layer}.downsample"
            found |= norm_sources(f"{ours}/norm", f"{theirs}.norm")
            reduction = f"{theirs}.reduction.weight"
            found[f"{ours}/reduction/kernel"] = Source((reduction,), LINEAR)
        for i in range(depth):
            ours, theirs = f"stages/{stage}/{i}", f"{layer}.blocks.{i}"
            for a, names in LINEARS.items():
                found |= linear_sources(
                    f"{ours}/{a}", *(f"{theirs}.{b}" for b in names)
                )
            for a, b in NORMS.items():
                found |= norm_sources(f"{ours}/{a}", f"{theirs}.{b}")
            table = f"{theirs}.attention.self.relative_position_bias_table"
            found[f"{ours}/attention/bias"] = Source((table,))
    return {f"params/{path}": source for path, source in found.items()}


FAMILY = Family(
    model="swin",
    architectures=("SwinForImageClassification",),
    arguments=arguments,
    config=config,
    tensors=tensors,
    # Older files hold the numbers of the relative positions.
    ignored=(r".*\.relative_position_index", r"swin\.pooler\..*"),
    writes=writes,
)
