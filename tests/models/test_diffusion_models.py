"""U-Net and DiT: shapes, taps, their start, conditions, and what they refuse."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf, softmax

from jaxkd import models, training
from jaxkd.evaluation.cost import parameter_count
from jaxkd.models.diffusion.conditioning import sinusoidal
from jaxkd.models.diffusion.dit import Block
from jaxkd.models.diffusion.unet import ResBlock, SpatialAttention, resample
from jaxkd.models.parts.tokens import grid_positions
from jaxkd.sharding.mesh import on_mesh
from jaxkd.training.costs import program_costs

NETS = {
    "unet": (
        {
            "image_size": 8,
            "channels_in": 2,
            "channels": 8,
            "multipliers": [1, 2],
            "blocks": 1,
            "attention": [4],
            "head_channels": 4,
            "classes": 3,
            "groups": 4,
        },
        {
            **{name: (2, 8, 8, 8) for name in ("down0", "up0")},
            **{name: (2, 4, 4, 16) for name in ("down1", "middle", "up1")},
        },
    ),
    "dit": (
        {
            "size": [8, 2, 2],
            "image_size": 8,
            "patch_size": 4,
            "channels_in": 2,
            "classes": 3,
        },
        dict.fromkeys(("embed", "block0", "block1", "final"), (2, 4, 8)),
    ),
}


def inputs(seed=0, **changed):
    image = np.random.default_rng(seed).normal(size=(2, 8, 8, 2)).astype("f4")
    found = {
        "image": jnp.asarray(image),
        "time": jnp.array([0.3, 0.7]),
        "condition": jnp.array([0, 3]),
    }
    return {k: v for k, v in {**found, **changed}.items() if v is not None}


@pytest.fixture(scope="module", params=NETS)
def case(request):
    """Return a network, its variables as they start and moved, and its forward."""
    arguments, taps = NETS[request.param]
    network = models.create(request.param, **json.loads(json.dumps(arguments)))
    variables = jax.jit(network.init)(jax.random.key(0))
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    moved = structure.unflatten(
        [x + 0.1 * rng.normal(size=x.shape).astype("f4") for x in leaves]
    )
    forward = jax.jit(lambda v, x: network.apply(v, x, taps=network.taps)[0])
    return network, variables, moved, forward, taps


@pytest.mark.slow
def test_on_a_mesh_only_weights_are_sent(case):
    """XLA split activations by the features of the class table instead."""
    network, variables, *_ = case
    mesh = training.make_mesh("fsdp")
    batch = {name: jnp.repeat(x, 64, axis=0) for name, x in inputs().items()}
    placed = jax.device_put(
        variables, training.state_sharding(variables, mesh, network.axes, min_size=32)
    )
    forward = jax.jit(on_mesh(lambda v, x: network.apply(v, x)[0].logits, mesh))
    program = forward.lower(placed, training.shard_batch(batch, mesh)).compile()
    sent = program_costs(program.as_text()).collectives
    weights = sum(x.nbytes for x in jax.tree.leaves(variables))
    assert sent.keys() == {"all-gather"}
    assert sent["all-gather"] < weights * 3 / 4


@pytest.mark.slow
def test_taps_and_a_start_at_zero(case):
    network, variables, moved, forward, taps = case
    outputs = forward(variables, inputs())
    assert {name: x.shape for name, x in outputs.features.items()} == taps
    assert set(network.taps) == set(taps)
    np.testing.assert_array_equal(outputs.logits, np.zeros((2, 8, 8, 2)))
    assert jnp.abs(forward(moved, inputs()).logits).min() > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("time", [0.31, 0.7]), ("condition", [1, 3]), ("image", None)],
)
def test_each_example_reads_its_own_inputs_alone(case, name, value):
    _, _, moved, forward, _ = case
    given = inputs()
    value = inputs(5)["image"].at[1].set(given["image"][1]) if value is None else value
    before, after = (
        forward(moved, x).logits for x in (given, {**given, name: jnp.array(value)})
    )
    assert jnp.abs(after[0] - before[0]).max() > 1e-4
    np.testing.assert_allclose(after[1], before[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bf16_keeps_the_time_s_digits(case):
    network, _, moved, forward, _ = case
    low = jax.jit(lambda v, x: network.computing_in(jnp.bfloat16).apply(v, x)[0].logits)
    found = low(moved, inputs())
    assert found.dtype == jnp.bfloat16
    exact = forward(moved, inputs()).logits
    scale = jnp.abs(exact).max()
    assert jnp.abs(found - exact).max() < 0.1 * scale
    # In bf16 0.99 would be 0.9883: another moment.
    near = low(moved, inputs(time=jnp.array([0.99, 0.7])))
    rounded = low(moved, inputs(time=jnp.array([0.98828125, 0.7])))
    assert jnp.any(near != rounded)


@pytest.mark.slow
def test_dropout_and_remat_change_nothing_in_evaluation():
    arguments = {**NETS["unet"][0], "multipliers": [1], "attention": []}
    plain, other = (
        models.unet(**arguments, dropout=rate, remat=rate > 0) for rate in (0.0, 0.5)
    )
    variables = jax.tree.map(
        lambda x: jnp.full(x.shape, 0.05), jax.eval_shape(plain.init, jax.random.key(0))
    )
    given = inputs()

    def loss(network, params, key=None):
        found, _ = network.apply(
            {**variables, "params": params}, given, train=key is not None, key=key
        )
        return jnp.mean(found.logits**2)

    @jax.jit
    def values(params):
        gradients = [
            jax.value_and_grad(lambda p, n=network: loss(n, p))(params)
            for network in (plain, other)
        ]
        return gradients, loss(other, params, jax.random.key(3))

    ((found, gradient), (same, same_gradient)), dropped = values(variables["params"])
    np.testing.assert_allclose(same, found, rtol=1e-5)
    chex.assert_trees_all_close(gradient, same_gradient, rtol=1e-3, atol=1e-6)
    assert abs(dropped - found) > 1e-3 * found


def moved_module(module, seed=0):
    """Return the module with every parameter random, and the parameters in float64."""
    graph, params = nnx.split(module)
    rng = np.random.default_rng(seed)
    values = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype("f4"), params)
    plain = {
        "/".join(map(str, path)): np.asarray(leaf.get_value(), np.float64)
        for path, leaf in nnx.to_flat_state(values)
    }
    return nnx.merge(graph, jax.tree.map(jnp.asarray, values)), plain


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, groups, scale, bias):
    n, height, width, channels = x.shape
    split = x.reshape(n, height, width, groups, channels // groups)
    mean, var = (f(split, (1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    return ((split - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * scale + bias


def convolution(x, kernel, bias):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return bias + sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )


def attention(x, p, heads):
    query, key, value = (
        part.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)
        for part in np.split(x @ p["qkv/kernel"] + p["qkv/bias"], 3, axis=-1)
    )
    weight = softmax(query @ key.swapaxes(2, 3) / np.sqrt(query.shape[-1]), axis=-1)
    gathered = (weight @ value).swapaxes(1, 2).reshape(x.shape)
    return gathered @ p["projection/kernel"] + p["projection/bias"]


def under(p, name):
    return {k[len(name) + 1 :]: v for k, v in p.items() if k.startswith(f"{name}/")}


@pytest.mark.parametrize("how", ["", "down", "up"])
def test_a_residual_block_against_numpy(how):
    block, p = moved_module(ResBlock(4, 6, 5, 2, 0.0, how, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    x, embedding = rng.normal(size=(2, 4, 4, 4)), rng.normal(size=(2, 5))

    def resized(x):
        if how == "up":
            return x.repeat(2, 1).repeat(2, 2)
        quarters = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
        return sum(quarters) / 4 if how == "down" else x

    y = silu(group_norm(x, 2, p["norm1/scale"], p["norm1/bias"]))
    y = convolution(resized(y), p["conv1/kernel"], p["conv1/bias"])
    modulation = silu(embedding) @ p["modulation/kernel"] + p["modulation/bias"]
    scale, shift = np.split(modulation[:, None, None], 2, axis=-1)
    y = group_norm(y, 2, p["norm2/scale"], p["norm2/bias"]) * (1 + scale) + shift
    y = convolution(silu(y), p["conv2/kernel"], p["conv2/bias"])
    expected = y + resized(x) @ p["shortcut/kernel"][0, 0] + p["shortcut/bias"]
    found = jax.jit(block)(jnp.float32(x), jnp.float32(embedding))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_attention_over_a_map_against_numpy():
    layer, p = moved_module(SpatialAttention(4, 2, 2, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).normal(size=(2, 3, 3, 4))
    tokens = group_norm(x, 2, p["norm/scale"], p["norm/bias"]).reshape(2, 9, 4)
    expected = x + attention(tokens, under(p, "attention"), 2).reshape(x.shape)
    found = jax.jit(layer)(jnp.float32(x), jnp.zeros((2, 5)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_transformer_block_against_numpy():
    block, p = moved_module(Block(4, 2, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    x, embedding = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 4))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + 1e-6
        )

    modulation = silu(embedding) @ p["modulation/kernel"] + p["modulation/bias"]
    shift1, scale1, gate1, shift2, scale2, gate2 = np.split(modulation[:, None], 6, -1)
    attended = attention(norm(x) * (1 + scale1) + shift1, under(p, "attention"), 2)
    y = x + gate1 * attended
    hidden = (norm(y) * (1 + scale2) + shift2) @ p["mlp/fc1/kernel"] + p["mlp/fc1/bias"]
    hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    expected = y + gate2 * (hidden @ p["mlp/fc2/kernel"] + p["mlp/fc2/bias"])
    found = jax.jit(block)(jnp.float32(x), jnp.float32(embedding))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_published_sizes():
    # Dhariwal and Nichol 2021, Table 4: 296 million; Peebles and Xie 2022, Table 1: 33,
    # with 1,000 classes and, at patch 2, 4 channels.
    adm = parameter_count(models.unet(classes=1000))
    assert round(adm / 1e6) == 296
    assert round(parameter_count(models.dit(classes=1000)) / 1e6) == 33


def test_times_and_places_are_waves():
    waves = sinusoidal(jnp.array([0.0, 0.25]), 6)
    angle = 250 * 10_000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(waves[0], [1, 1, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        waves[1], [*np.cos(angle), *np.sin(angle)], rtol=1e-3, atol=1e-4
    )
    places = grid_positions(3, 8)
    assert places.shape == (9, 8)
    # The first half tells the column, the second the row.
    np.testing.assert_allclose(places[1, :4], places[4, :4])
    np.testing.assert_allclose(places[3, 4:], places[4, 4:])
    np.testing.assert_allclose(places[5, :2], np.sin([2, 2 / 100]), rtol=1e-5)


def test_resampling_averages_and_repeats():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    down = resample(x, "down")
    np.testing.assert_allclose(down[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    up = resample(down, "up")
    np.testing.assert_allclose(up[0, :2, :2, 0], 2.5)
    np.testing.assert_allclose(resample(up, "down"), down)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"time": None}, r"dict of image, time, condition .* got \['condition', 'im"),
        ({"condition": None}, r"condition is missing, .* classes=3"),
        ({"image": jnp.zeros((2, 4, 4, 2))}, r"\(2, 4, 4, 2\), but .* 8, 8, 2"),
        ({"time": jnp.zeros(3)}, r"time has shape \(3,\), but there are 2 images"),
        ({"label": jnp.zeros(2)}, "unknown input 'label'"),
    ],
)
def test_bad_inputs_are_named(case, changed, message, unchecked_shapes):
    network, variables, *_ = case
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.apply, variables, inputs(**changed))


def test_a_model_without_classes_takes_no_condition():
    network = models.dit([8, 1, 2], image_size=8, patch_size=4, channels_in=2)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    jax.eval_shape(network.apply, variables, inputs(condition=None))
    with pytest.raises(ValueError, match=r"condition was given, .* classes=0"):
        jax.eval_shape(network.apply, variables, inputs())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.unet(10, multipliers=(1, 1, 1)), "cannot be halved 2 times"),
        (lambda: models.unet(attention=(7,)), r"\(7,\), but the network has"),
        (lambda: models.unet(channels=48), "multiple of groups"),
        (lambda: models.unet(head_channels=100), "of head_channels"),
        (lambda: models.dit("tiny"), "unknown DiT size"),
        (lambda: models.dit([10, 1, 2]), "of 4, got"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
