"""PyTorch's weights: real checkpoints, made-up ones, and files that are neither."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxkd import data, models
from jaxkd.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from jaxkd.interop import load_torch_resnet

ROOT = os.environ.get(data.DATA_VARIABLE)
HAVE = ROOT and (Path(ROOT) / "weights/reference_outputs.npz").is_file()
needs_weights = pytest.mark.skipif(
    not HAVE, reason=f"{data.DATA_VARIABLE} names no folder with weights/*.npz"
)


@pytest.fixture(scope="module")
def images():
    """The first 500 test images of CIFAR-10, normalised as the weights want."""
    test = data.cifar10().test
    normalize = data.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return normalize(test.take(np.arange(500)), None)


@needs_weights
@pytest.mark.parametrize("depth", [20, 56])
def test_published_cifar_resnets_give_their_reference_logits(images, depth):
    network, variables = load_torch_resnet(f"{ROOT}/weights/cifar10_resnet{depth}.npz")
    with np.load(f"{ROOT}/weights/reference_outputs.npz", allow_pickle=False) as file:
        expected = file[f"resnet{depth}_logits"]
    logits = jax.jit(network.apply)(variables, images["image"][:16])[0].logits
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@needs_weights
def test_a_published_cifar_resnet_classifies_as_measured(images):
    network, variables = load_torch_resnet(f"{ROOT}/weights/cifar10_resnet20.npz")
    logits = jax.jit(network.apply)(variables, images["image"])[0].logits
    assert np.sum(np.argmax(logits, -1) == images["label"]) == 459  # 91.8 %


def torch_arrays(network, seed=0):
    """Return random arrays of a network's shapes under PyTorch's names and layouts."""
    rng = np.random.default_rng(seed)
    shapes = flatten_dict(jax.eval_shape(network.init, jax.random.key(0)))
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    names |= {"mean": "running_mean", "var": "running_var"}
    arrays, expected = {}, {}
    for place, shape in shapes.items():
        _, *path, kind = place
        if path[0] == "layers":
            path[:2] = [f"layer{int(path[1]) + 1}"]
        if "downsample" in path:
            path[-1] = {"conv": "0", "bn": "1"}[path[-1]]
        value = rng.random(shape.shape, np.float32)
        expected[place] = value
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        arrays[".".join([*path, names[kind]])] = np.ascontiguousarray(
            value.T if value.ndim == 2 else value
        )
        if kind == "var":
            arrays[".".join([*path, "num_batches_tracked"])] = np.asarray(7)
    return arrays, expected


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (
            models.imagenet_resnet(50, 7),
            ["layer1.0.downsample.1.running_var", "layer4.2.conv3.weight", "fc.bias"],
        ),
        (models.imagenet_resnet(18, 7), ["layer2.0.downsample.0.weight"]),
        (models.cifar_resnet(8, 3, shortcut="identity"), ["layer3.0.bn2.bias"]),
    ],
    ids=["resnet50", "resnet18", "cifar"],
)
def test_every_array_finds_its_place(network, names, tmp_path):
    arrays, expected = torch_arrays(network)
    for name in names:
        assert name in arrays
    save_file(arrays, tmp_path / "model.safetensors")
    found, variables = load_torch_resnet(tmp_path / "model.safetensors")
    assert found.taps == network.taps
    flat = flatten_dict(variables)
    assert flat.keys() == expected.keys()
    for place, value in expected.items():
        np.testing.assert_array_equal(flat[place], value)


def test_a_convolution_is_pytorchs(tmp_path):
    """One pixel of the stem, computed as PyTorch defines a convolution."""
    network = models.cifar_resnet(8, 3, shortcut="identity")
    arrays, _ = torch_arrays(network)
    np.savez(tmp_path / "model.npz", **arrays)
    network, variables = load_torch_resnet(tmp_path / "model.npz")
    image = np.random.default_rng(1).normal(size=(1, 8, 8, 3)).astype("f4")
    outputs, _ = network.apply(variables, jnp.asarray(image), taps=("stage0.pre",))
    # Padding of one pixel: output (2, 3) sees rows 1 … 3 and columns 2 … 4.
    patch = image[0, 1:4, 2:5].transpose(2, 0, 1)
    value = np.einsum("ocyx,cyx->o", arrays["conv1.weight"], patch)
    scale = arrays["bn1.weight"] / np.sqrt(arrays["bn1.running_var"] + 1e-5)
    value = (value - arrays["bn1.running_mean"]) * scale + arrays["bn1.bias"]
    found = outputs.features["stage0.pre"][0, 2, 3]
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)


def broken(**changes):
    arrays, _ = torch_arrays(models.cifar_resnet(8, 3, shortcut="identity"))
    arrays |= changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer2.0.conv2.weight": None},
            r"no array for params/layers/1/0/conv2/kernel has shape None, but the model"
            r" has \(3, 3, 32, 32\) there",
        ),
        (
            {"extra.weight": np.ones(3)},
            r"extra.weight for params/extra/kernel has shape \(3,\), but the model has "
            "nothing there: the file is of another network",
        ),
        (
            {"layer1.0.bn1.bias": np.ones(5)},
            r"layer1.0.bn1.bias for .*\(5,\), but the model has \(16,\) there",
        ),
        ({"fc.weight": None}, "is not a ResNet: it lacks"),
        ({"layer1.1.bn1.bias": np.ones(16)}, r"\(2, 1, 1\) blocks.*no ResNet known"),
    ],
)
def test_arrays_of_another_network_are_named(changes, message, tmp_path):
    np.savez(tmp_path / "model.npz", **broken(**changes))
    with pytest.raises(ValueError, match=message):
        load_torch_resnet(tmp_path / "model.npz")


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz is missing"):
        load_torch_resnet(tmp_path / "none.npz")
    (tmp_path / "model.pth").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=r"neither \.npz nor \.safetensors: convert"):
        load_torch_resnet(tmp_path / "model.pth")
    for name in ("model.npz", "model.safetensors"):
        (tmp_path / name).write_bytes(b"garbage")
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load_torch_resnet(tmp_path / name)
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickled.npz", weight=pickled)
    with pytest.raises(ValueError, match=r"pickled.npz is damaged .*allow_pickle"):
        load_torch_resnet(tmp_path / "pickled.npz")
