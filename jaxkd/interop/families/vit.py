"""ViT and DeiT of `jaxkd.models.vit`."""

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
from jaxkd.models.parts.tokens import named_size
from jaxkd.models.vision.vit import SIZES

ARCHITECTURES = {
    False: ("vit", "ViTForImageClassification"),
    True: ("deit", "DeiTForImageClassificationWithTeacher"),
}
"""``model_type`` and architecture, without and with a distillation token."""

LINEARS = {
    "attention/projection": "attention.output.dense",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
}
NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
PATCHES = "width channels y x -> (y x channels) width"


@checked()
def require_square(config: Mapping[str, Any]) -> None:
    """Refuse images or patches that are not square.

    Raises:
        ValueError: it names them.
    """
    for key in ("image_size", "patch_size"):
        if not isinstance(config.get(key, 0), int):
            raise ValueError(
                f"config.json has {key} = {config[key]}, but jaxkd builds square ones "
                "only, of one number"
            )


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.vit`'s arguments for a config."""
    require(config, "hidden_act", "gelu")
    require(config, "qkv_bias", True)
    require_square(config)
    size = "hidden_size", "num_hidden_layers", "num_attention_heads"
    return {
        "size": tuple(config[key] for key in size),
        "classes": class_count(config),
        "image_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", 16),
        "distilled": config["model_type"] == "deit",
        "channels_in": config.get("num_channels", 3),
        "hidden": config["intermediate_size"],
        "epsilon": config.get("layer_norm_eps", 1e-12),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    width, layers, heads = named_size(arguments["size"], SIZES, "ViT")
    model_type, architecture = ARCHITECTURES[arguments["distilled"]]
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": arguments["hidden"] or 4 * width,
        "image_size": arguments["image_size"],
        "patch_size": arguments["patch_size"],
        "num_channels": arguments["channels_in"],
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": arguments["epsilon"],
        **class_names(arguments["classes"]),
    }


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    _, layers, _ = named_size(arguments["size"], SIZES, "ViT")
    distilled, side = arguments["distilled"], arguments["patch_size"]
    body, _ = ARCHITECTURES[distilled]
    embeddings = f"{body}.embeddings"
    patches = f"{embeddings}.patch_embeddings.projection"
    prefix = [f"{embeddings}.cls_token"]
    linears, norms = {}, {"norm": f"{body}.layernorm"}
    if distilled:
        prefix.append(f"{embeddings}.distillation_token")
        linears["head"] = ("cls_classifier",)
        linears["distillation_head"] = ("distillation_classifier",)
    else:
        linears["head"] = ("classifier",)
    for i in range(layers):
        ours, theirs = f"blocks/{i}", f"{body}.encoder.layer.{i}"
        linears[f"{ours}/attention/qkv"] = tuple(
            f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")
        )
        linears |= {f"{ours}/{a}": (f"{theirs}.{b}",) for a, b in LINEARS.items()}
        norms |= {f"{ours}/{a}": f"{theirs}.{b}" for a, b in NORMS.items()}
    found = {
        "params/prefix": Source(tuple(prefix), axis=-2),
        "params/positions": Source((f"{embeddings}.position_embeddings",)),
        **patch_sources("params/patches/projection", patches, side),
    }
    for ours, names in linears.items():
        found |= linear_sources(f"params/{ours}", *names)
    for ours, theirs in norms.items():
        found |= norm_sources(f"params/{ours}", theirs)
    return found


@checked()
def patch_sources(ours: str, theirs: str, side: int) -> dict[str, Source]:
    """Return the sources of the projection of patches, a convolution in the files.

    Args:
        ours: its path.
        theirs: the convolution.
        side: of a patch in pixels.
    """
    return {
        f"{ours}/kernel": Source(
            (f"{theirs}.weight",), PATCHES, sizes={"y": side, "x": side}
        ),
        f"{ours}/bias": Source((f"{theirs}.bias",)),
    }


FAMILY = Family(
    model="vit",
    architectures=tuple(architecture for _, architecture in ARCHITECTURES.values()),
    arguments=arguments,
    config=config,
    tensors=tensors,
    # Some files hold a layer that classifiers do not use.
    ignored=(r"(vit|deit)\.pooler\.dense\.(weight|bias)",),
)
