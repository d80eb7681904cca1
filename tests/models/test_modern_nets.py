"""Swin and ConvNeXt: their forward passes against float64 NumPy, shapes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax
from test_resnets import random_array, same

from jaxkd import models
from jaxkd.models.vision.swin import relative_positions, window_mask

RNG = np.random.default_rng(0)


def run(network, side, classes_in=3):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    variables = jax.tree_util.tree_map_with_path(random_array, shapes)
    # Branches of 1e-6, as layer scales start, would show nothing of themselves.
    image = RNG.normal(size=(2, side, side, classes_in)).astype("f4")
    outputs, _ = jax.jit(network.apply, static_argnames="taps")(
        variables, jnp.asarray(image), taps=network.taps
    )
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    return outputs, exact, image.astype(np.float64)


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def norm(x, p, eps):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return x * p["scale"] + p["bias"]


def mlp(x, p):
    hidden = linear(x, p["fc1"])
    return linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, p["fc2"])


def patches(x, size):
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, h // size, w // size, -1)


def window_attention(x, p, heads, window, shift):
    """Attend pair by pair: tokens of one window that are neighbours in the image."""
    b, side, _, width = x.shape
    qkv = linear(x, p["qkv"]).reshape(b, side, side, 3, heads, width // heads)
    # Windows start at the shift: a token's window, counted around the image's end, but
    # only tokens that the end does not part belong together.
    place = (np.arange(side) - shift) % side
    wrapped = np.arange(side) < shift
    group = place // window + side * wrapped
    y, x_ = np.divmod(np.arange(side**2), side)
    together = (group[y][:, None] == group[y]) & (group[x_][:, None] == group[x_])
    inside_y, inside_x = place[y] % window, place[x_] % window
    down = inside_y[:, None] - inside_y + window - 1
    right = inside_x[:, None] - inside_x + window - 1
    flat = qkv.reshape(b, side**2, 3, heads, -1)
    q, k, v = (flat[:, :, i].swapaxes(1, 2) for i in range(3))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(width // heads)
    index = np.where(together, down * (2 * window - 1) + right, 0)
    scores = scores + p["bias"][index].transpose(2, 0, 1)
    weights = softmax(np.where(together, scores, -np.inf), axis=-1)
    gathered = (weights @ v).swapaxes(1, 2).reshape(b, side, side, width)
    return linear(gathered, p["projection"])


def test_swin_is_the_papers_forward_pass():
    size = (4, 2, 1, 2, 1, 1, 2, 2, 4)
    network = models.swin(size, 5, image_size=16, patch_size=2, window=2)
    outputs, p, x = run(network, 16)
    x = linear(patches(x, 2), p["patches"]["projection"])
    x = norm(x, p["norm0"], 1e-5)

    def tokens(x):
        return x.reshape(2, -1, x.shape[-1])

    features = {"embed": tokens(x)}
    for i, (depth, heads) in enumerate(zip(size[1:5], size[5:], strict=True)):
        if i:
            q = p["merging"][str(i - 1)]
            offsets = (0, 0), (1, 0), (0, 1), (1, 1)
            x = np.concatenate([x[:, a::2, b::2] for a, b in offsets], -1)
            x = linear(norm(x, q["norm"], 1e-5), q["reduction"])
        side = x.shape[1]
        for j in range(depth):
            q = p["stages"][str(i)][str(j)]
            shift = 1 if j % 2 and side > 2 else 0
            y = norm(x, q["norm1"], 1e-5)
            x = x + window_attention(y, q["attention"], heads, min(2, side), shift)
            x = x + mlp(norm(x, q["norm2"], 1e-5), q["mlp"])
        features[f"stage{i + 1}"] = tokens(x)
    features["final"] = tokens(norm(x, p["norm"], 1e-5))
    features["pooled"] = features["final"].mean(1)
    same(outputs, linear(features["pooled"], p["head"]), features)


def test_shifted_windows_part_the_images_ends():
    # Four tokens a side, windows of two, moved by one: the last window of a row holds
    # the row's last token and its first.
    mask = window_mask(4, 2, 1)
    np.testing.assert_array_equal(mask[0], np.ones((4, 4)))
    np.testing.assert_array_equal(mask[1], np.tile([[1, 0], [0, 1]], (2, 2)))
    np.testing.assert_array_equal(mask[3], np.eye(4))
    assert window_mask(4, 2, 0).all()


def test_relative_positions_are_numbered_by_row_and_column():
    index = relative_positions(2)
    np.testing.assert_array_equal(
        index, [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    )


def test_convnext_is_the_papers_forward_pass():
    network = models.convnext((4, 1, 2, 1, 1), 5)
    outputs, p, x = run(network, 32)

    def convolved(x, q, size):
        kernel = q["kernel"].reshape(-1, q["kernel"].shape[-1])
        return patches(x, size) @ kernel + q["bias"]

    x = norm(convolved(x, p["stem"], 4), p["norm0"], 1e-6)
    features = {"stage0": x}
    for i, depth in enumerate((1, 2, 1, 1)):
        if i:
            x = norm(x, p["norms"][str(i - 1)], 1e-6)
            x = convolved(x, p["halve"][str(i - 1)], 2)
        for j in range(depth):
            q = p["stages"][str(i)][str(j)]
            padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
            around = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))
            y = np.einsum("bhwcyx,yxc->bhwc", around, q["depthwise"]["kernel"][:, :, 0])
            y = norm(y + q["depthwise"]["bias"], q["norm"], 1e-6)
            x = x + q["scale"] * mlp(y, q["mlp"])
        features[f"stage{i + 1}"] = x
    features["pooled"] = norm(x.mean((1, 2)), p["norm"], 1e-6)
    same(outputs, linear(features["pooled"], p["head"]), features)


@pytest.mark.slow
def test_published_stages():
    def shapes(network):
        def forward(key):
            image = jnp.zeros((2, 224, 224, 3))
            return network.apply(network.init(key), image, taps=network.taps)[0]

        return {
            tap: x.shape[1:]
            for tap, x in jax.eval_shape(forward, jax.random.key(0)).features.items()
        }

    swin, convnext = shapes(models.swin("pico")), shapes(models.convnext())
    for i in range(4):
        side = 56 // 2**i
        assert swin[f"stage{i + 1}"] == (side**2, 48 * 2**i)
        assert convnext[f"stage{i + 1}"] == (side, side, 96 * 2**i)
    assert swin["pooled"] == (384,)
    assert convnext["pooled"] == (768,)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.swin("tinny"), "did you mean 'tiny'"),
        (lambda: models.swin((4, 1, 1, 1)), "size must be .* such as 9 of four stages"),
        (lambda: models.swin((4, 0, 1)), r"got \(4, 0, 1\)"),
        (
            lambda: models.swin((6, 1, 1, 1, 1, 4, 4, 4, 4)),
            "widths 6, 12, .* must be multiples of their heads",
        ),
        (lambda: models.swin(image_size=240), r"\[60, 30, 15, 7\]"),
        (lambda: models.swin(image_size=256), "multiples of window 7"),
        (lambda: models.convnext("tinny"), "did you mean 'tiny'"),
        (lambda: models.convnext(widths=(4, 8)), "widths must be 4 positive numbers"),
        (lambda: models.mobilenet_v2(form="large"), "form must be 'cifar' or"),
    ],
)
def test_impossible_models_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_image_that_convnext_cannot_halve_is_refused(unchecked_shapes):
    network = models.convnext((4, 1, 1, 1, 1), 5)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match="multiples of 32: resize it"):
        jax.eval_shape(network.apply, variables, jnp.zeros((1, 48, 48, 3)))
