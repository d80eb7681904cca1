"""DINOv2, ConvNeXt, Swin, MobileNetV2 and SigLIP against transformers' numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.interop import load_pretrained
from jaxkd.models.vision.dinov2 import cubic_weights, positions_between
from jaxkd.models.vision.mobilenet import scaled
from jaxkd.sharding.mesh import state_sharding
from jaxkd.training import MeshShape, make_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

# Our taps, and the hidden state that each is. What transformers has after a stage of
# Swin is joined for the next one already; of MobileNetV2 it has every block.
HIDDEN = {
    "dinov2": {"embed": 0, "block0": 1, "block1": 2, "block2": 3},
    "convnext": {f"stage{i}": i for i in range(5)},
    "swin": {"embed": 0, "joined": 1, "stage2": 2},
    "mobilenet_v2": {"stage1": 1, "stage2": 4, "stage3": 11, "stage4": 15},
}


def golden(name):
    expected = dict(np.load(GOLDEN / name / "io.npz"))
    images = jnp.asarray(expected["pixel_values"].transpose(0, 2, 3, 1))
    return *load_pretrained(GOLDEN / name), images, expected


def channels_last(x):
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def joined(tokens, merging):
    """Join 2 x 2 tokens as the second stage of a Swin begins."""
    p, grid = merging["0"], np.asarray(tokens).reshape(2, 16, 16, -1)
    corners = (0, 0), (1, 0), (0, 1), (1, 1)
    x = np.concatenate([grid[:, y::2, x::2] for y, x in corners], -1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * p["norm"]["scale"] + p["norm"]["bias"]
    return (x @ p["reduction"]["kernel"]).reshape(2, 64, -1)


@pytest.mark.slow
@pytest.mark.parametrize("name", HIDDEN)
def test_logits_and_hidden_states_are_those_of_transformers(name):
    network, variables, images, expected = golden(name)

    @jax.jit
    def run(variables, images):
        low = network.computing_in(jnp.bfloat16)
        taps = {*HIDDEN[name], "stage1"} & {*network.taps}
        exact, _ = network.apply(variables, images, taps=tuple(sorted(taps)))
        return exact, low.apply(variables, images)[0].logits

    outputs, low = run(variables, images)
    np.testing.assert_allclose(outputs.logits, expected["logits"], **CLOSE)
    features = dict(outputs.features)
    if name == "swin":
        features["joined"] = joined(features["stage1"], variables["params"]["merging"])
    for tap, number in HIDDEN[name].items():
        hidden = channels_last(expected[f"hidden_{number}"])
        np.testing.assert_allclose(features[tap], hidden, **CLOSE)
    assert low.dtype == jnp.bfloat16
    spread = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(
        low.astype(float), expected["logits"], atol=0.05 * spread
    )


@pytest.mark.slow
def test_siglip_is_that_of_transformers():
    network, variables, images, expected = golden("siglip")
    inputs = {"pixel_values": images, "input_ids": jnp.asarray(expected["input_ids"])}
    taps = ("image_embeds", "text_embeds")

    @jax.jit
    def run(variables, inputs):
        low = network.computing_in(jnp.bfloat16)
        exact, _ = network.apply(variables, inputs, taps=taps)
        return exact, low.apply(variables, inputs)[0].logits

    outputs, low = run(variables, inputs)
    logits = expected["logits_per_image"]
    np.testing.assert_allclose(outputs.logits, logits, **CLOSE)
    for tap in taps:
        np.testing.assert_allclose(outputs.features[tap], expected[tap], **CLOSE)
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2))
    placed = jax.device_put(
        variables, state_sharding(variables, mesh, network.axes, 32)
    )
    with jax.set_mesh(mesh):
        apart = jax.jit(lambda v, x: network.apply(v, x)[0].logits)(placed, inputs)
    np.testing.assert_allclose(apart, logits, **CLOSE)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        low.astype(float), logits, atol=0.05 * np.abs(logits).max()
    )


def test_positions_between_are_pytorchs():
    # The example of a = -0.75 in ONNX's operator Resize, which is PyTorch's bicubic.
    weights = cubic_weights(4, 8)
    first = [0.47265625, 0.76953125, 1.24609375, 1.875]
    first += [2.28125, 2.91015625, 3.38671875, 3.68359375]
    found = weights @ np.arange(1.0, 17).reshape(4, 4) @ weights.T
    np.testing.assert_allclose(found[0], first, rtol=1e-12)
    np.testing.assert_allclose(found + found[::-1, ::-1], 17, rtol=1e-12)
    for old, new in ((4, 4), (5, 3), (2, 9)):
        np.testing.assert_allclose(cubic_weights(old, new).sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(cubic_weights(4, 4), np.eye(4), atol=1e-12)


def test_dinov2_takes_images_of_any_size_that_patches_tile():
    network = models.dinov2((8, 1, 2), None, image_size=8, patch_size=4, swiglu=True)
    image = jax.random.normal(jax.random.key(1), (2, 12, 8, 3))

    @jax.jit
    def run(key):
        variables = network.init(key)
        return variables, network.apply(variables, image, taps=network.taps)[0]

    variables, outputs = run(jax.random.key(0))
    params = variables["params"]
    assert params["blocks"]["0"]["mlp"]["fc2"]["kernel"].shape == (24, 8)
    assert outputs.logits is None
    assert outputs.features["final"].shape == (2, 7, 8)
    final = outputs.features["final"]
    pooled = np.concatenate([final[:, 0], final[:, 1:].mean(1)], -1)
    np.testing.assert_allclose(outputs.features["pooled"], pooled, atol=1e-6)
    positions = positions_between(params["positions"][0, 1:], 3, 2)
    patches = image.reshape(2, 3, 4, 2, 4, 3).swapaxes(2, 3).reshape(2, 6, 48)
    projection = params["patches"]["projection"]
    expected = patches @ projection["kernel"] + projection["bias"] + positions
    np.testing.assert_allclose(outputs.features["embed"][:, 1:], expected, atol=1e-6)
    with pytest.raises(ValueError, match="patch_size 4 does not tile images of shape"):
        jax.eval_shape(network.apply, variables, image[:, :6])


@pytest.mark.parametrize("side", [6, 7])
def test_tensorflow_pads_the_end_of_even_sides(side):
    network = models.mobilenet_v2(
        0.25, 2, form="imagenet", divisor=4, tf_padding=True, epsilon=1e-3
    )
    variables = jax.eval_shape(network.init, jax.random.key(0))
    variables = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), variables)
    image = jax.random.normal(jax.random.key(1), (1, side, side, 3))
    stem = network.segment(None, "stage0.pre")
    outputs, _ = stem.apply(variables, image)
    around = (0, 1) if side % 2 == 0 else (1, 1)
    padded = np.pad(image, ((0, 0), around, around, (0, 0))).sum(-1)
    sums = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    expected = (sums[:, ::2, ::2].sum((-1, -2)) - 1) / np.sqrt(1 + 1e-3) + 1
    np.testing.assert_allclose(outputs.logits[..., 0], expected, rtol=1e-5, atol=1e-5)


def test_channels_are_multiples_of_a_divisor():
    # Of Google's MobileNetV2 0.35: 11.2 and 33.6 channels become 16 and 32.
    assert [scaled(n, 0.35, 8) for n in (32, 16, 24, 96, 160)] == [16, 8, 8, 32, 56]
    assert [scaled(n, 0.35, None) for n in (32, 96)] == [11, 33]


@pytest.mark.slow
def test_siglip_reads_padding_that_fills_the_context():
    sizes = {"image": (8, 1, 2, 12), "text": (8, 1, 2, 12)}
    network = models.siglip(
        **sizes, image_size=8, patch_size=4, vocabulary=9, context=6, pad=1
    )
    ids = jnp.asarray([[5, 2, 7, 3], [4, 2, 8, 8]])
    mask = jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0]])
    whole = jnp.asarray([[5, 2, 7, 3, 1, 1], [4, 2, 1, 1, 1, 1]])
    image = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    taps = ("image_embeds", "text_embeds", "image.pooled")

    @jax.jit
    def run(key):
        variables = network.init(key)
        both = {"pixel_values": image, "input_ids": whole}
        padded = {"input_ids": ids, "attention_mask": mask}
        outputs, _ = network.apply(variables, both, taps=taps)
        return outputs, network.apply(variables, padded, taps=taps[1:2])[0]

    outputs, padded = run(jax.random.key(0))
    images, texts, pooled = (outputs.features[tap] for tap in taps)
    np.testing.assert_allclose(padded.features["text_embeds"], texts, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, 10 * images @ texts.T - 10, 1e-5)
    unit = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    np.testing.assert_allclose(images, unit, atol=1e-6)


def test_what_siglip_does_not_read_is_refused():
    sizes = {"image": (8, 1, 2, 12), "text": (8, 1, 2, 12)}
    network = models.siglip(**sizes, image_size=8, patch_size=4, context=6)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    for inputs, message in (
        ({"image": jnp.zeros((1, 8, 8, 3))}, "SigLIP reads pixel_values, input_ids or"),
        ({"input_ids": jnp.zeros((1, 7), int)}, "7 tokens a row, .* model knows 6"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(network.apply, variables, inputs)
    with pytest.raises(ValueError, match="width 8 is no multiple of 3 heads"):
        models.siglip((8, 1, 3, 12))
