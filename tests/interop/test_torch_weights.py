"""PyTorch's weights: real checkpoints, made-up ones, and files that are neither."""

import os
from pathlib import Path
from typing import Any

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


@pytest.mark.slow
@needs_weights
@pytest.mark.parametrize("depth", [20, 56])
def test_published_cifar_resnets_give_their_reference_logits(images, depth):
    network, variables = load_torch_resnet(f"{ROOT}/weights/cifar10_resnet{depth}.npz")
    with np.load(f"{ROOT}/weights/reference_outputs.npz", allow_pickle=False) as file:
        expected = file[f"resnet{depth}_logits"]
    logits = jax.jit(network.apply)(variables, images["image"][:16])[0].logits
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@needs_weights
def test_a_published_cifar_resnet_classifies_as_measured(images):
    network, variables = load_torch_resnet(f"{ROOT}/weights/cifar10_resnet20.npz")
    logits = jax.jit(network.apply)(variables, images["image"])[0].logits
    assert np.sum(np.argmax(logits, -1) == images["label"]) == 459  # 91.8 %


def torch_arrays(network, seed=0):
    """Return random arrays of a network's shapes under PyTorch's names and layouts."""
    rng = np.random.default_rng(seed)
    shapes: Any = flatten_dict(jax.eval_shape(network.init, jax.random.key(0)))
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "names"),
    [
        (
            models.imagenet_resnet(50, 7),
            ["layer1.0.downsample.1.running_var", "layer4.2.conv3.weight", "fc.bias"],
        ),
        (models.imagenet_resnet(18, 7), ["layer2.0.downsample.0.weight"]),
        (models.imagenet_resnet(18, 7, stem="cifar"), ["layer4.1.conv2.weight"]),
        (models.cifar_resnet(8, 3, shortcut="identity"), ["layer3.0.bn2.bias"]),
        (
            models.cifar_resnet(8, 3, widths=(8, 16, 32, 64)),
            ["layer1.0.downsample.0.weight"],
        ),
    ],
    ids=["resnet50", "resnet18", "resnet18-cifar", "option-a", "resnet8x2"],
)
def test_every_array_finds_its_place(network, names, tmp_path):
    arrays, expected = torch_arrays(network)
    for name in names:
        assert name in arrays
    save_file(arrays, tmp_path / "model.safetensors")
    found, variables = load_torch_resnet(tmp_path / "model.safetensors")
    assert found.taps == network.taps
    same_variables(variables, expected)
    # The same network: its head, its stem and its shortcuts too.
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(found.init, jax.random.key(0))
    )


def same_variables(variables, expected):
    flat = flatten_dict(variables)
    assert flat.keys() == expected.keys()
    for place, value in expected.items():
        np.testing.assert_array_equal(flat[place], value)


def test_other_families_names_are_known(tmp_path):
    """As the benchmarks' ResNet-50 teacher names arrays, and data-parallel training."""
    arrays, expected = torch_arrays(models.cifar_resnet(8, 3))
    renamed = {
        "module." + name.replace("fc.", "linear.").replace("downsample", "shortcut"): a
        for name, a in arrays.items()
    }
    assert {"module.linear.bias", "module.layer2.0.shortcut.0.weight"} <= set(renamed)
    np.savez(tmp_path / "model.npz", **renamed)
    same_variables(load_torch_resnet(tmp_path / "model.npz")[1], expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32(dtype, tmp_path):
    arrays = {n: a.astype(jnp.dtype(dtype)) for n, a in broken().items()}
    save_file(arrays, tmp_path / "model.safetensors")
    _, variables = load_torch_resnet(tmp_path / "model.safetensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("f4")}
    bias = arrays["fc.bias"].astype("f4")
    np.testing.assert_array_equal(variables["params"]["fc"]["bias"], bias)


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
        ({"layer2.0.conv2.weight": None}, r"lacks layer2\.0\.conv2\.weight: the file"),
        ({"extra.weight": np.ones(3)}, r"has extra\.weight, .* has no place"),
        (
            {"layer1.0.bn1.bias": np.ones(5)},
            r"layer1\.0\.bn1\.bias is float64\[5\], but the model has float32\[16\]",
        ),
        (
            {"layer3.0.conv1.weight": np.ones((64, 32, 1, 3), "f4")},
            r"is float32\[64, 32, 1, 3\], but the model has float32\[64, 32, 3, 3\]",
        ),
        ({"fc.bias": np.arange(3)}, r"fc\.bias is int64\[3\], but .* float32\[3\]"),
        ({"linear.bias": np.ones(3)}, r"both fc\.bias and linear\.bias, which are one"),
        ({"fc.weight": None}, r"not a ResNet: it lacks fc\.weight of 2 axes"),
        ({"conv1.weight": np.ones(3)}, r"it lacks conv1\.weight of 4 axes"),
        (
            {"layer2.0.conv1.weight": None},
            r"it lacks layer2\.0\.conv1\.weight of 4 axes; it has bn1\.bias",
        ),
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
    with pytest.raises(ValueError, match=r"pickled.npz is damaged .*holds object"):
        load_torch_resnet(tmp_path / "pickled.npz")
