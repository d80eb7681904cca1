"""ConvNeXts of `jaxkd.models.convnext`."""

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
from jaxkd.interop.families.resnet import CONV
from jaxkd.models.vision.convnext import stages


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.convnext`'s arguments for a config."""
    require(config, "hidden_act", "gelu")
    require(config, "patch_size", 4)
    require(config, "num_stages", 4)
    if config.get("layer_scale_init_value", 1e-6) <= 0:
        raise ValueError(
            "config.json has layer_scale_init_value = 0, a model without layer scales, "
            "which jaxkd does not build"
        )
    widths = tuple(config.get("hidden_sizes") or (96, 192, 384, 768))
    return {
        "size": (widths[0], *(config.get("depths") or (3, 3, 9, 3))),
        "classes": class_count(config),
        "channels_in": config.get("num_channels", 3),
        "widths": widths,
        "epsilon": config.get("layer_norm_eps", 1e-12),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    depths, widths = stages(arguments["size"], arguments["widths"])
    return {
        "architectures": ["ConvNextForImageClassification"],
        "model_type": "convnext",
        "num_channels": arguments["channels_in"],
        "patch_size": 4,
        "num_stages": 4,
        "hidden_sizes": list(widths),
        "depths": list(depths),
        "hidden_act": "gelu",
        "layer_norm_eps": arguments["epsilon"],
        **class_names(arguments["classes"]),
    }


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    depths, _ = stages(arguments["size"], arguments["widths"])
    convs = {"stem": "embeddings.patch_embeddings"}
    norms = {"norm0": "embeddings.layernorm", "norm": "layernorm"}
    linears, scales = {}, {}
    for stage, depth in enumerate(depths):
        within = f"encoder.stages.{stage}"
        if stage:
            norms[f"norms/{stage - 1}"] = f"{within}.downsampling_layer.0"
            convs[f"halve/{stage - 1}"] = f"{within}.downsampling_layer.1"
        for i in range(depth):
            ours, theirs = f"stages/{stage}/{i}", f"{within}.layers.{i}"
            convs[f"{ours}/depthwise"] = f"{theirs}.dwconv"
            norms[f"{ours}/norm"] = f"{theirs}.layernorm"
            linears[f"{ours}/mlp/fc1"] = f"{theirs}.pwconv1"
            linears[f"{ours}/mlp/fc2"] = f"{theirs}.pwconv2"
            scales[f"{ours}/scale"] = f"{theirs}.layer_scale_parameter"
    found = linear_sources("head", "classifier")
    for ours, theirs in convs.items():
        found[f"{ours}/kernel"] = Source((f"convnext.{theirs}.weight",), CONV)
        found[f"{ours}/bias"] = Source((f"convnext.{theirs}.bias",))
    for ours, theirs in norms.items():
        found |= norm_sources(ours, f"convnext.{theirs}")
    for ours, theirs in linears.items():
        found |= linear_sources(ours, f"convnext.{theirs}")
    for ours, theirs in scales.items():
        found[ours] = Source((f"convnext.{theirs}",))
    return {f"params/{path}": source for path, source in found.items()}


FAMILY = Family(
    model="convnext",
    architectures=("ConvNextForImageClassification",),
    arguments=arguments,
    config=config,
    tensors=tensors,
)
