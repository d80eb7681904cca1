"""Published PyTorch weights of ResNets: arrays under PyTorch's names, never pickles."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from jaxkd.arguments import checked
from jaxkd.models.vision.resnet import BLOCKS, Bottleneck, cifar_resnet, imagenet_resnet
from jaxkd.network import Network
from jaxkd.types import Variables
from jaxkd.untrusted import arrays_file

NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Our name of an array -> PyTorch's."""

ALIASES = ((r"^module\.", ""), (r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample."))
"""What CIFAR families and parallel training call things -> torchvision's names."""


@checked()
def load_torch_resnet(path: str | Path) -> tuple[Network, Variables]:
    """Return a ResNet and its variables from a file of PyTorch-named arrays.

    It knows torchvision's ResNet-18, -34 and -50, the same with a 3x3 stem (CIFAR), and
    CIFAR ResNets with either shortcut: He et al.'s without parameters (Idelbayev's
    pytorch_resnet_cifar10) and the projection of the distillation benchmarks' teachers
    (RepDistiller, Tian et al. 2019, arXiv:1910.10699). Depth, widths and classes follow
    from the arrays; weights of lower precision become float32. Images are RGB / 255,
    normalised by ImageNet's mean and deviation for torchvision's and Idelbayev's, by
    CIFAR-100's for the benchmarks'.

    Args:
        path: an ``.npz`` or ``.safetensors`` file; convert a ``.pth`` file, which is a
            pickle and may run any code, where you trust it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a damaged one, or arrays that are not such a
            ResNet's. It names the first array that is missing, left over, of another
            shape or not floating-point.
    """
    path = Path(path)
    arrays = _torchvision_names(_read(path), path)
    network = _network(arrays, path)
    expected: Any = flatten_dict(jax.eval_shape(network.init, jax.random.key(0)))
    found: Any = {}
    for place, wanted in expected.items():
        name = _name(place)
        if name not in arrays:
            raise ValueError(f"{path} lacks {name}: the file is of another network")
        array = arrays.pop(name)
        shape = (*wanted.shape[:-3:-1], *wanted.shape[:-2])  # PyTorch's layout
        if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{path}: {name} is {array.dtype}{list(array.shape)}, but the model "
                f"has float32{list(shape)} there: the file is of another network"
            )
        found[place] = jnp.asarray(_layout(array), wanted.dtype)
    if arrays:
        raise ValueError(
            f"{path} has {min(arrays)}, for which the model has no place: the file is "
            "of another network"
        )
    return network, unflatten_dict(found)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name a file of weights")
    try:
        if path.suffix == ".npz":
            return arrays_file(path)
        if path.suffix == ".safetensors":
            return load_file(path)
    except Exception as error:  # whatever a damaged file causes
        raise ValueError(
            f"{path} is damaged ({error}): fetch or convert it again"
        ) from None
    raise ValueError(
        f"{path} is neither .npz nor .safetensors: convert it, with names as PyTorch's "
        "state_dict has them (pickled files are not read)"
    )


def _torchvision_names(arrays: dict[str, np.ndarray], path: Path) -> dict:
    """Return the arrays under torchvision's names, without the batch counters."""
    renamed, origin = {}, {}
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        new = name
        for pattern, replacement in ALIASES:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(
                f"{path} has both {origin[new]} and {name}, which are one array of a "
                "ResNet: leave one out"
            )
        renamed[new], origin[new] = array, name
    return renamed


def _network(arrays: Mapping[str, np.ndarray], path: Path) -> Network:
    """Return the ResNet that has these arrays' blocks, widths and classes."""
    blocks: dict[int, set[int]] = {}
    for name in arrays:
        if match := re.match(r"layer(\d{1,4})\.(\d{1,4})\.", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    counts = tuple(len(blocks[i]) for i in sorted(blocks))
    stages = range(1, max(len(blocks), 3) + 1)
    convs = ["conv1.weight", *(f"layer{i}.0.conv1.weight" for i in stages)]
    for name, axes in {**dict.fromkeys(convs, 4), "fc.weight": 2}.items():
        if name not in arrays or arrays[name].ndim != axes:
            raise ValueError(
                f"{path} is not a ResNet: it lacks {name} of {axes} axes; it has "
                f"{', '.join(sorted(arrays)[:5])}, …"
            )
    stem, classes = arrays["conv1.weight"].shape, len(arrays["fc.weight"])
    bottleneck = "layer1.0.conv3.weight" in arrays
    for depth, (block, depths) in BLOCKS.items():
        if counts == depths and bottleneck == (block is Bottleneck):
            kind = "cifar" if stem[-1] == 3 else "imagenet"
            return imagenet_resnet(depth, classes, stem=kind, channels_in=stem[1])
    if len(counts) == 3 and len(set(counts)) == 1 and not bottleneck:
        projected = any(".downsample." in name for name in arrays)
        return cifar_resnet(
            6 * counts[0] + 2,
            classes,
            widths=[len(arrays[name]) for name in convs],
            shortcut="projection" if projected else "identity",
            channels_in=stem[1],
        )
    raise ValueError(
        f"{path} has {counts} blocks in its stages, which is no ResNet known here: "
        "18, 34 or 50 layers, or three stages of as many basic blocks"
    )


def _name(place: tuple[str, ...]) -> str:
    """Return torchvision's name of one of our arrays."""
    _, *path, kind = place
    if path[0] == "layers":
        path[:2] = [f"layer{int(path[1]) + 1}"]
    # layer1.0.downsample.0 and .1 are a convolution and a BatchNorm.
    if "downsample" in path:
        path[-1] = {"conv": "0", "bn": "1"}[path[-1]]
    return ".".join([*path, NAMES[kind]])


def _layout(array: np.ndarray) -> np.ndarray:
    """Bring OIHW to HWIO (convolutions), and (out, in) to (in, out)."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array
