"""ResNets of `jaxkd.models.imagenet_resnet`."""

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
from jaxkd.models.vision.resnet import BLOCKS, Bottleneck

CONV = "outputs inputs y x -> y x inputs outputs"
NORM = {
    "params/{}/scale": "weight",
    "params/{}/bias": "bias",
    "stats/{}/mean": "running_mean",
    "stats/{}/var": "running_var",
}


@checked()
def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `jaxkd.models.imagenet_resnet`'s arguments for a config."""
    require(config, "hidden_act", "relu")
    for key in ("downsample_in_first_stage", "downsample_in_bottleneck"):
        require(config, key, False)
    kind = config.get("layer_type", "bottleneck")
    require({"layer_type": kind}, "layer_type", "basic", "bottleneck")
    bottleneck = kind == "bottleneck"
    sizes = [size // (4 if bottleneck else 1) for size in config["hidden_sizes"]]
    return {
        "depth": tuple(config["depths"]),
        "classes": class_count(config),
        "channels_in": config.get("num_channels", 3),
        "widths": (config.get("embedding_size", 64), *sizes),
        "bottleneck": bottleneck,
    }


@checked()
def config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of such a model."""
    depths, bottleneck = _stages(arguments)
    first, *widths = arguments["widths"]
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": arguments["channels_in"],
        "embedding_size": first,
        "hidden_sizes": [width * (4 if bottleneck else 1) for width in widths],
        "depths": list(depths),
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        **class_names(arguments["classes"]),
    }


def _stages(arguments: Mapping[str, Any]) -> tuple[tuple[int, ...], bool]:
    """Return the blocks of each stage, and whether they are bottlenecks."""
    depth = arguments["depth"]
    if isinstance(depth, int):
        block, depths = BLOCKS[depth]
        return depths, block is Bottleneck
    return tuple(depth), arguments["bottleneck"]


@checked()
def tensors(arguments: Mapping[str, Any]) -> dict[str, Source]:
    """Return the source of every array."""
    depths, bottleneck = _stages(arguments)
    growth = 4 if bottleneck else 1
    first, *widths = arguments["widths"]
    sizes = [first, *(width * growth for width in widths)]
    pairs = {("conv1", "bn1"): "embedder.embedder"}
    for stage, depth in enumerate(depths):
        for i in range(depth):
            ours, theirs = (
                f"layers/{stage}/{i}",
                f"encoder.stages.{stage}.layers.{i}",
            )
            for layer in range(3 if bottleneck else 2):
                names = f"{ours}/conv{layer + 1}", f"{ours}/bn{layer + 1}"
                pairs[names] = f"{theirs}.layer.{layer}"
            if i == 0 and (stage > 0 or sizes[0] != sizes[1]):
                names = f"{ours}/downsample/conv", f"{ours}/downsample/bn"
                pairs[names] = f"{theirs}.shortcut"
    found = linear_sources("params/fc", "classifier.1")
    for (conv, norm), theirs in pairs.items():
        found |= convolution_sources(conv, norm, f"resnet.{theirs}")
    return found


@checked()
def convolution_sources(conv: str, norm: str, theirs: str) -> dict[str, Source]:
    """Return the sources of a convolution without a bias and of the BatchNorm after it.

    Args:
        conv: our convolution's path.
        norm: our BatchNorm's.
        theirs: what holds both in the files.
    """
    found = {
        f"params/{conv}/kernel": Source((f"{theirs}.convolution.weight",), CONV),
    }
    for ours, kind in NORM.items():
        found[ours.format(norm)] = Source((f"{theirs}.normalization.{kind}",))
    return found


FAMILY = Family(
    model="imagenet_resnet",
    architectures=("ResNetForImageClassification",),
    arguments=arguments,
    config=config,
    tensors=tensors,
    ignored=(r".*\.num_batches_tracked",),
    writes=lambda arguments: arguments["stem"] == "imagenet",
)
