"""Published PyTorch weights of ResNets: arrays under PyTorch's names, never pickles."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxkd.models.resnet import BLOCKS, Bottleneck, cifar_resnet, imagenet_resnet
from jaxkd.types import Network, Variables

RENAMED = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("stats", "mean"),
    "running_var": ("stats", "var"),
}
"""PyTorch's name of a BatchNorm array -> part and name of ours."""


HEADS = ("fc.weight", "linear.weight")
"""The last layer's names, in torchvision and in the CIFAR family."""


def load_torch_resnet(path: str | Path) -> tuple[Network, Variables]:
    """Return a ResNet and its variables from a file of PyTorch-named arrays.

    It knows the two public families: torchvision's ResNet-18, -34 and -50, and CIFAR
    ResNets with He et al.'s shortcuts without parameters (as of Idelbayev's
    pytorch_resnet_cifar10). Depth, widths and classes follow from the arrays. Images
    are RGB / 255, normalised by ImageNet's mean and deviation in both families.

    Args:
        path: an ``.npz`` or ``.safetensors`` file; convert a ``.pth`` file, which is a
            pickle and may run any code, where you trust it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a damaged one, or arrays that are not such a
            ResNet's. It names the first array that is missing, left over or of another
            shape.
    """
    path = Path(path)
    arrays = _read(path)
    network = _network(arrays, path)
    expected: Any = flatten_dict(jax.eval_shape(network.init, jax.random.key(0)))
    found = {}
    for name, array in arrays.items():
        if not name.endswith("num_batches_tracked"):
            found[_place(name)] = (name, array)
    for place in sorted({*expected, *found}):
        name, array = found.get(place, ("no array", None))
        array = None if array is None else _layout(array)
        shapes = getattr(array, "shape", None), getattr(expected.get(place), "shape", 0)
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path}: {name} for {'/'.join(place)} has shape {shapes[0]}, but the "
                f"model has {shapes[1] or 'nothing'} there: the file is of another "
                "network"
            )
    flat: Any = {place: jnp.asarray(_layout(a)) for place, (_, a) in found.items()}
    return network, unflatten_dict(flat)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name a file of weights")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        if path.suffix == ".safetensors":
            return load_file(path)
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): fetch or convert it again"
        ) from None
    raise ValueError(
        f"{path} is neither .npz nor .safetensors: convert it, with names as PyTorch's "
        "state_dict has them (pickled files are not read)"
    )


def _network(arrays: Mapping[str, np.ndarray], path: Path) -> Network:
    """Return the ResNet that has these arrays' blocks, widths and classes."""
    blocks: dict[int, set[int]] = {}
    for name in arrays:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    counts = tuple(len(blocks[i]) for i in sorted(blocks))
    head = next((arrays[n] for n in HEADS if n in arrays), None)
    stem = arrays.get("conv1.weight")
    if head is None or stem is None or not counts:
        raise ValueError(
            f"{path} is not a ResNet: it lacks conv1.weight, layer1.… or one of "
            f"{', '.join(HEADS)}; it has {', '.join(sorted(arrays)[:5])}, …"
        )
    classes, channels_in = len(head), stem.shape[1]
    bottleneck = "layer1.0.conv3.weight" in arrays
    for depth, (block, depths) in BLOCKS.items():
        if counts == depths and bottleneck == (block is Bottleneck):
            return imagenet_resnet(depth, classes, channels_in=channels_in)
    if len(counts) == 3 and len(set(counts)) == 1 and not bottleneck:
        widths = [arrays[f"layer{i}.0.conv1.weight"].shape[0] for i in (1, 2, 3)]
        return cifar_resnet(
            6 * counts[0] + 2,
            classes,
            widths=(stem.shape[0], *widths),
            shortcut="identity",
            channels_in=channels_in,
        )
    raise ValueError(
        f"{path} has {counts} blocks in its stages, which is no ResNet known here: "
        "18, 34 or 50 layers, or three stages of as many basic blocks"
    )


def _place(name: str) -> tuple[str, ...]:
    """Return where one of PyTorch's arrays belongs in our variables."""
    *path, kind = name.split(".")
    # layer1.0.downsample.0 and .1 are a convolution and a BatchNorm.
    if "downsample" in path:
        path[-1] = {"0": "conv", "1": "bn"}.get(path[-1], path[-1])
    if path and (match := re.fullmatch(r"layer(\d+)", path[0])):
        path[:1] = ["layers", str(int(match[1]) - 1)]
    path = ["fc" if part == "linear" else part for part in path]
    if path and path[-1].startswith("bn"):
        part, kind = RENAMED.get(kind, ("params", kind))
        return (part, *path, kind)
    return ("params", *path, "kernel" if kind == "weight" else kind)


def _layout(array: np.ndarray) -> np.ndarray:
    """Bring OIHW to HWIO (convolutions), and (out, in) to (in, out)."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array
