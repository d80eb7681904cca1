"""What the image models compute, against independent computations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.signal import correlate2d
from scipy.special import erf, softmax

from jaxkd import models
from jaxkd.models.parts.blocks import BatchNorm, conv
from jaxkd.models.vision.resnet import Identity
from jaxkd.models.vision.shufflenet import channel_shuffle

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("kernel", "stride", "groups"),
    [(3, 1, 1), (3, 2, 1), (1, 2, 1), (7, 2, 1), (3, 2, 4)],
)
def test_convolutions_are_padded_on_every_side(kernel, stride, groups):
    layer = conv(4, 8, kernel, stride, groups, rngs=nnx.Rngs(0))
    x = RNG.normal(size=(1, 8, 8, 4)).astype("f4")
    weights = np.asarray(layer.kernel[...])
    expected = np.zeros((8, 8, 8))
    for out in range(8):
        for i in range(4 // groups):
            channel = out // (8 // groups) * (4 // groups) + i
            padded = np.pad(x[0, :, :, channel], kernel // 2)
            expected[:, :, out] += correlate2d(padded, weights[:, :, i, out], "valid")
    np.testing.assert_allclose(
        layer(x)[0], expected[::stride, ::stride], rtol=1e-4, atol=1e-5
    )


def test_convolutions_start_with_the_variance_of_he():
    layer = conv(32, 64, rngs=nnx.Rngs(0))
    deviation = np.sqrt(2 / (9 * 64))
    assert np.std(layer.kernel[...]) == pytest.approx(deviation, rel=0.02)
    assert layer.bias is None


def test_batch_norm_keeps_its_inputs_dtype_and_float32_averages():
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(2, 3, size=(64, 3)), jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    normal = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(y.astype("f4"), normal, atol=0.03)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(0), rtol=1e-5)


def test_the_shortcut_without_parameters():
    x = RNG.normal(size=(1, 4, 4, 2)).astype("f4")
    y = np.asarray(Identity(2, 6, 2)(jnp.asarray(x)))
    assert y.shape == (1, 2, 2, 6)
    np.testing.assert_array_equal(y[..., 2:4], x[:, ::2, ::2])
    assert not y[..., [0, 1, 4, 5]].any()


def test_channel_shuffle():
    x = jnp.arange(6.0)[None, None, None]
    assert channel_shuffle(x, 2)[0, 0, 0].tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(x, 3)[0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    np.testing.assert_array_equal(channel_shuffle(channel_shuffle(x, 2), 3), x)


def layer_norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def patches(image, p, size):
    n, side = len(image), image.shape[1] // size
    cut = image.reshape(n, side, size, side, size, 3).swapaxes(2, 3)
    kernel = p["projection"]["kernel"].reshape(-1, p["projection"]["bias"].size)
    return cut.reshape(n, side * side, -1) @ kernel + p["projection"]["bias"]


def random_variables(network):
    """Return variables with noise on all that starts as 0 or 1."""
    variables = network.init(jax.random.key(0))
    noise = lambda x: x + 0.1 * RNG.normal(size=x.shape).astype("f4")  # noqa: E731
    return jax.tree.map(noise, variables)


@pytest.mark.slow
def test_vit_is_the_papers_forward_pass():
    network = models.vit((12, 2, 3), 5, image_size=8, patch_size=4, distilled=True)
    variables = random_variables(network)
    image = RNG.normal(size=(2, 8, 8, 3)).astype("f4")
    taps = ("embed", "block0.attn", "block1", "final", "pooled", "distillation_logits")
    outputs, _ = network.apply(variables, jnp.asarray(image), taps=taps)

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    x = patches(image, p["patches"], 4)
    x = np.concatenate([np.repeat(p["prefix"], 2, 0), x], 1) + p["positions"]
    np.testing.assert_allclose(outputs.features["embed"], x, rtol=1e-4, atol=1e-5)
    for i in range(2):
        block = p["blocks"][str(i)]
        qkv = linear(layer_norm(x, block["norm1"]), block["attention"]["qkv"])
        q, k, v = qkv.reshape(2, 6, 3, 3, 4).transpose(2, 0, 3, 1, 4)
        weights = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(4), axis=-1)
        gathered = (weights @ v).swapaxes(1, 2).reshape(2, 6, 12)
        attended = linear(gathered, block["attention"]["projection"])
        if i == 0:
            found = outputs.features["block0.attn"]
            np.testing.assert_allclose(found, attended, rtol=1e-4, atol=1e-5)
        x = x + attended
        hidden = gelu(linear(layer_norm(x, block["norm2"]), block["mlp"]["fc1"]))
        x = x + linear(hidden, block["mlp"]["fc2"])
    np.testing.assert_allclose(outputs.features["block1"], x, rtol=1e-4, atol=1e-5)
    x = layer_norm(x, p["norm"])
    heads = linear(x[:, 0], p["head"]), linear(x[:, 1], p["distillation_head"])
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(outputs.features["pooled"], x[:, 0], **close)
    np.testing.assert_allclose(
        outputs.features["distillation_logits"], heads[1], **close
    )
    np.testing.assert_allclose(outputs.logits, sum(heads) / 2, **close)
    # In training the class head answers alone.
    outputs, _ = network.apply(variables, jnp.asarray(image), train=True)
    np.testing.assert_allclose(outputs.logits, heads[0], **close)


def test_mixer_is_the_papers_forward_pass():
    network = models.mlp_mixer((12, 2, 8, 16), 5, image_size=8, patch_size=4)
    variables = random_variables(network)
    image = RNG.normal(size=(2, 8, 8, 3)).astype("f4")
    outputs, _ = network.apply(variables, jnp.asarray(image), taps=("block1.mix",))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])

    def mlp(x, part):
        return linear(gelu(linear(x, part["fc1"])), part["fc2"])

    x = patches(image, p["patches"], 4)
    for i in range(2):
        block = p["blocks"][str(i)]
        turned = layer_norm(x, block["norm1"]).swapaxes(1, 2)
        mixed = mlp(turned, block["mix_tokens"]).swapaxes(1, 2)
        x = x + mixed
        x = x + mlp(layer_norm(x, block["norm2"]), block["mix_channels"])
    found = outputs.features["block1.mix"]
    np.testing.assert_allclose(found, mixed, rtol=1e-4, atol=1e-5)
    logits = linear(layer_norm(x, p["norm"]).mean(1), p["head"])
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)


def test_resmlp_is_the_papers_forward_pass():
    network = models.resmlp((12, 2), 5, image_size=8, patch_size=4)
    fresh = network.init(jax.random.key(0))["params"]["blocks"]["0"]
    np.testing.assert_allclose(fresh["scale1"], 0.1)
    variables = random_variables(network)
    image = RNG.normal(size=(2, 8, 8, 3)).astype("f4")
    outputs, _ = network.apply(variables, jnp.asarray(image))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])

    def affine(x, part):
        return part["scale"] * x + part["shift"]

    x = patches(image, p["patches"], 4)
    for i in range(2):
        block = p["blocks"][str(i)]
        turned = affine(x, block["affine1"]).swapaxes(1, 2)
        x = x + block["scale1"] * linear(turned, block["mix_tokens"]).swapaxes(1, 2)
        hidden = linear(affine(x, block["affine2"]), block["mix_channels"]["fc1"])
        x = x + block["scale2"] * linear(gelu(hidden), block["mix_channels"]["fc2"])
    logits = linear(affine(x, p["norm"]).mean(1), p["head"])
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_stochastic_depth_skips_branches_of_whole_examples():
    network = models.vit((12, 3, 3), 5, image_size=8, patch_size=4, drop_path=0.9)
    variables = random_variables(network)
    image = jnp.asarray(RNG.normal(size=(64, 8, 8, 3)), jnp.float32)
    with pytest.raises(ValueError, match="key is None, but the model draws random"):
        network.apply(variables, image, train=True)
    outputs, _ = network.apply(
        variables, image, taps=("block1", "block2"), train=True, key=jax.random.key(0)
    )
    before, after = outputs.features["block1"], outputs.features["block2"]
    same = np.all(np.asarray(before == after), axis=(1, 2))
    some = np.any(np.asarray(before == after), axis=(1, 2))
    # The last block skips both branches of an example with probability 0.81.
    np.testing.assert_array_equal(same, some)
    assert 0.6 < same.mean() < 0.95
