"""Forward passes of ResNets, WRNs and VGGs, against float64 NumPy and PyTorch's rules.

PyTorch's rules: a convolution pads kernel // 2 zeros on every side, a max-pool pads
with minus infinity, and BatchNorm in evaluation divides by sqrt(var + 1e-5).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from jaxkd import models
from jaxkd.interop import load_pretrained
from jaxkd.models.vision.resnet import BasicBlock, Bottleneck, ResNet
from jaxkd.models.vision.vgg import VGG
from jaxkd.network import Network

RNG = np.random.default_rng(0)


def windows(x, size, stride, fill):
    pad = (size // 2, size // 2)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=fill)
    return sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def conv(x, p, stride=1):
    kernel = p["kernel"]
    patches = windows(x, len(kernel), stride, 0.0)
    return np.einsum("bhwcyx,yxco->bhwo", patches, kernel) + p.get("bias", 0)


def relu(x):
    return np.maximum(x, 0)


def norm(x, p, s):
    return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]


def run(network, side):
    """Return the network's outputs, its variables in float64 and the image."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    variables = jax.tree_util.tree_map_with_path(random_array, shapes)
    image = RNG.normal(size=(2, side, side, 3)).astype("f4")
    forward = jax.jit(network.apply, static_argnames="taps")
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    outputs, _ = forward(variables, jnp.asarray(image), taps=network.taps)
    return outputs, exact["params"], exact["stats"], image.astype(np.float64)


def random_array(path, leaf):
    """Return weights that keep a map's size, and scales and variances about 1."""
    kind = path[-1].key
    value = RNG.normal(size=leaf.shape)
    if kind == "kernel":
        value *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
    elif kind in ("scale", "var"):
        value = 1 + 0.5 * np.tanh(value)
    return jnp.asarray(value, jnp.float32)


def same(outputs, logits, features):
    assert outputs.features.keys() == features.keys()
    for tap, expected in features.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            outputs.features[tap] / scale, expected / scale, atol=1e-5, err_msg=tap
        )
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-4)


def head(x, p):
    pooled = x.mean((1, 2))
    return pooled @ p["kernel"] + p["bias"], pooled


def residual_block(x, p, s, stride, channels):
    """Return the sum before the ReLU; two convolutions or a bottleneck's three."""
    count = sum(name.startswith("conv") for name in p)
    y = x
    for i in range(1, count + 1):
        # The stride is in the 3x3: the first of two, the second of three.
        step = stride if i == count - 1 else 1
        y = norm(conv(relu(y) if i > 1 else y, p[f"conv{i}"], step), *bn(p, s, i))
    if "downsample" in p:
        p, s = p["downsample"], s["downsample"]
        return y + norm(conv(x, p["conv"], stride), p["bn"], s["bn"])
    fill = (channels - x.shape[-1]) // 2
    return y + np.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((fill, fill),))


def bn(p, s, i):
    return p[f"bn{i}"], s[f"bn{i}"]


BASIC = {"depths": (2, 1, 1), "widths": (4, 4, 6, 8), "classes": 5}
RESNETS = {
    "projection": (BasicBlock, {**BASIC, "widths": (4, 6, 6, 8)}),
    "identity": (BasicBlock, {**BASIC, "shortcut": "identity"}),
    "bottleneck": (Bottleneck, BASIC),
    "imagenet": (Bottleneck, {**BASIC, "large_stem": True}),
}


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_is_the_papers_forward_pass(name):
    block, arguments = RESNETS[name]
    network = Network.from_nnx(lambda rngs: ResNet(block, **arguments, rngs=rngs))
    large = name == "imagenet"
    outputs, p, s, x = run(network, 18 if large else 9)
    x = norm(conv(x, p["conv1"], 2 if large else 1), *bn(p, s, 1))
    features = {"stage0.pre": x, "stage0": relu(x)}
    x = relu(x)
    if large:
        assert len(p["conv1"]["kernel"]) == 7
        x = windows(x, 3, 2, -np.inf).max((-2, -1))
    for i, depth in enumerate(arguments["depths"]):
        channels = arguments["widths"][i + 1] * block.expansion
        for j in range(depth):
            q, t = (part["layers"][str(i)][str(j)] for part in (p, s))
            stride = 2 if i and not j else 1
            before = residual_block(x, q, t, stride, channels)
            x = relu(before)
        features |= {f"stage{i + 1}.pre": before, f"stage{i + 1}": x}
    logits, features["pooled"] = head(x, p["fc"])
    same(outputs, logits, features)


def test_wide_resnet_is_the_papers_forward_pass():
    network = models.wide_resnet(16, 1, 5, dropout=0.5)
    outputs, p, s, x = run(network, 8)
    x = conv(x, p["conv1"])
    features = {"stage0": x, "stage0.pre": x}
    for i in range(3):
        for j in range(2):
            q, t = (part["layers"][str(i)][str(j)] for part in (p, s))
            stride = 2 if i and not j else 1
            normal = norm(x, *bn(q, t, 1))
            if i and not j:
                features[f"stage{i}.pre"] = normal
            y = norm(conv(relu(normal), q["conv1"], stride), *bn(q, t, 2))
            # Only a block that changes the width has a weighted shortcut.
            assert ("shortcut" in q) == (stride == 2)
            x = conv(relu(y), q["conv2"]) + (
                conv(relu(normal), q["shortcut"], stride) if stride == 2 else x
            )
        features[f"stage{i + 1}"] = x
    features["stage3.pre"] = norm(x, *bn(p, s, 1))
    logits, features["pooled"] = head(relu(features["stage3.pre"]), p["fc"])
    same(outputs, logits, features)


def test_wide_resnet_drops_between_the_convolutions():
    """At a rate near 1, blocks give their shortcut, and only in training."""
    network = models.wide_resnet(10, 1, 5, dropout=1 - 1e-6)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    variables = jax.tree_util.tree_map_with_path(random_array, shapes)
    image = jnp.asarray(RNG.normal(size=(2, 8, 8, 3)), jnp.float32)
    taps = ("stage0", "stage1")
    for train in (True, False):
        outputs, _ = jax.jit(network.apply, static_argnames=("taps", "train"))(
            variables, image, taps=taps, train=train, key=jax.random.key(1)
        )
        assert np.array_equal(*outputs.features.values()) == train


@pytest.mark.parametrize("depth", [1, 2])
def test_vgg_is_the_benchmarks_forward_pass(depth):
    network = Network.from_nnx(
        lambda rngs: VGG((4, 5, 6, 7, 8), depth, 5, 3, rngs=rngs)
    )
    outputs, p, s, x = run(network, 16)
    features = {}
    for i in range(5):
        q, t = (part["stages"][str(i)] for part in (p, s))
        for j in range(depth):
            y = conv(relu(x) if j else x, q["convs"][str(j)])
            x = norm(y, q["norms"][str(j)], t["norms"][str(j)])
        features |= {f"stage{i}.pre": x, f"stage{i}": relu(x)}
        x = relu(x)
        if i < 3:
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    logits, features["pooled"] = head(x, p["fc"])
    same(outputs, logits, features)


@pytest.mark.parametrize("widths", [(16, 16, 32, 63), (16, 8, 16, 16)])
def test_widths_that_zeros_cannot_fill_up_are_refused(widths):
    with pytest.raises(ValueError, match=r"widths must grow by even numbers, got \(16"):
        models.cifar_resnet(8, shortcut="identity", widths=widths)
    models.cifar_resnet(8, widths=widths)


def test_logits_and_stages_are_those_of_transformers():
    folder = Path(__file__).parents[1] / "golden" / "hf" / "resnet"
    network, variables = load_pretrained(folder)
    expected = np.load(folder / "io.npz")
    image = expected["pixel_values"].transpose(0, 2, 3, 1)
    taps = ("stage1", "stage2", "stage3", "stage4")
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(variables, image)
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(outputs.logits, expected["logits"], **close)
    for i, tap in enumerate(taps, start=1):
        stage = outputs.features[tap].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(stage, expected[f"hidden_{i}"], **close)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": (1, 0)}, "or the blocks of each stage"),
        ({"depth": ()}, "or the blocks of each stage"),
        ({"depth": (1, 1)}, "widths must be 3 positive numbers"),
    ],
)
def test_stages_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.imagenet_resnet(**arguments)
