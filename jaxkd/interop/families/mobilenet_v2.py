"""MobileNetV2 of `jaxkd.models.mobilenet_v2`."""

from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.interop.families.base import (
    Family,
    Source,
    class_count,
    class_names,
    linear_sources,
    require,
)
from jaxkd.interop.families.resnet import convolution_sources
from jaxkd.models.vision.mobilenet import STAGES

CONVOLUTIONS = ("expand_1x1", "conv_3x3", "reduce_1x1")
"""A block's, in the files."""


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.mobilenet_v2`'s arguments for a config."""
    require(config, "hidden_act", "relu6")
    require(config, "expand_ratio", 6.0)
    require(config, "output_stride", 32)
    require(config, "first_layer_is_expansion", True)
    width, divisor = (
        config.get("depth_multiplier", 1.0),
        config.get("depth_divisible_by", 8),
    )
    require({"min_depth": config.get("min_depth", 8)}, "min_depth", divisor)
    if width < 1:
        require(config, "finegrained_output", True)
    return {
        "width": float(width),
        "classes": class_count(config),
        "form": "imagenet",
        "channels_in": config.get("num_channels", 3),
        "divisor": divisor,
        "tf_padding": config.get("tf_padding", True),
        "epsilon": config.get("layer_norm_eps", 0.001),
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    return {
        "architectures": ["MobileNetV2ForImageClassification"],
        "model_type": "mobilenet_v2",
        "num_channels": arguments["channels_in"],
        "depth_multiplier": arguments["width"],
        "depth_divisible_by": arguments["divisor"],
        "min_depth": arguments["divisor"],
        "expand_ratio": 6.0,
        "output_stride": 32,
        "first_layer_is_expansion": True,
        "finegrained_output": True,
        "hidden_act": "relu6",
        "tf_padding": arguments["tf_padding"],
        "layer_norm_eps": arguments["epsilon"],
        **class_names(arguments["classes"]),
    }


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    found = linear_sources("params/fc", "classifier")
    # The first block belongs to the stem in the files.
    layers = iter(("conv_stem", *(f"layer.{i}" for i in range(16))))
    pairs = {
        ("conv1", "bn1"): "conv_stem.first_conv",
        ("conv2", "bn2"): "conv_1x1",
    }
    for stage, groups in enumerate(STAGES):
        expansions = [e for e, _, blocks, _ in groups for _ in range(blocks)]
        for i, expansion in enumerate(expansions):
            ours, theirs = f"stages/{stage}/{i}", next(layers)
            for number, name in enumerate(CONVOLUTIONS, start=1):
                if number > 1 or expansion > 1:
                    pair = f"{ours}/conv{number}", f"{ours}/bn{number}"
                    pairs[pair] = f"{theirs}.{name}"
    for (conv, norm), theirs in pairs.items():
        found |= convolution_sources(conv, norm, f"mobilenet_v2.{theirs}")
    return found


FAMILY = Family(
    model="mobilenet_v2",
    architectures=("MobileNetV2ForImageClassification",),
    arguments=arguments,
    config=config,
    tensors=tensors,
    ignored=(r".*\.num_batches_tracked",),
    # Of other channels, transformers has them rounded.
    writes=lambda a: a["form"] == "imagenet" and a["divisor"] is not None,
)
