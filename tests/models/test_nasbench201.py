"""NAS-Bench-201: the benchmark's sizes and forward pass; class maps as a tap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, networks
from jaxkd.evaluation.cost import parameter_count
from jaxkd.models.vision.nasbench201 import (
    EDGES,
    OPERATIONS,
    average_pool,
    format_cell,
    multiply_adds,
    parse_cell,
)

RNG = np.random.default_rng(0)
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|none~2|"


@pytest.mark.parametrize(
    ("operation", "classes", "expected"),
    [
        # The benchmark's smallest and largest networks for CIFAR-10.
        ("none", 10, 73_306),
        ("nor_conv_3x3", 10, 1_531_546),
    ],
)
def test_the_benchmarks_parameter_counts(operation, classes, expected):
    network = models.nasbench201(format_cell([operation] * 6), classes)
    assert parameter_count(network) == expected


def test_multiply_adds_are_the_benchmarks():
    assert multiply_adds(["none"] * 6) == multiply_adds(["avg_pool_3x3"] * 6) == 7.78e6
    # The benchmark's largest network takes 220.12 million.
    largest = multiply_adds(["nor_conv_3x3"] * 6)
    assert largest == pytest.approx(220.12e6, rel=1e-4)


def test_the_notation_goes_both_ways():
    names = parse_cell(CELL)
    assert names == (
        *("nor_conv_3x3", "none", "skip_connect"),
        *("nor_conv_1x1", "avg_pool_3x3", "none"),
    )
    assert format_cell(names) == CELL
    assert EDGES == ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
    assert len(OPERATIONS) == 5


def random_variables(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, s: jnp.asarray(
            RNG.uniform(0.5, 1.5, s.shape)
            if path[-1].key in ("var", "scale")
            else RNG.normal(0, 0.3, s.shape),
            jnp.float32,
        ),
        shapes,
    )


def test_the_forward_pass_is_the_benchmarks():
    """One cell a stage, in float64 NumPy from the paper's Figure 1 and its code."""
    network = models.nasbench201(CELL, 5, channels=4, cells=1)
    variables = random_variables(network)
    image = RNG.normal(size=(2, 8, 8, 3)).astype("f4")
    outputs, _ = jax.jit(network.apply, static_argnames="taps")(
        variables, jnp.asarray(image), taps=network.taps
    )
    p, s = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), variables[k])
        for k in ("params", "stats")
    )

    def conv(x, kernel, stride=1):
        size = len(kernel)
        x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
        return np.einsum("bhwcyx,yxco->bhwo", windows[:, ::stride, ::stride], kernel)

    def norm(x, p, s):
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def unit(x, p, s, stride=1):
        return norm(
            conv(np.maximum(x, 0), p["conv"]["kernel"], stride), p["bn"], s["bn"]
        )

    def pool(x):
        ones = np.ones((*x.shape[:3], 1))
        kernel = np.einsum("yx,co->yxco", np.ones((3, 3)), np.eye(x.shape[-1]))
        return conv(x, kernel) / conv(ones, np.ones((3, 3, 1, 1)))

    x = norm(conv(image, p["conv1"]["kernel"]), p["bn1"], s["bn1"])
    features = {}
    for i in range(3):
        edges, stats = (t["stages"][str(i)]["0"]["edges"] for t in (p, s))
        one = unit(x, edges["0"], stats["0"])
        x = unit(x, edges["3"], stats["3"]) + pool(one)
        features[f"stage{i + 1}"] = x
        if i < 2:
            q, t = (v["reductions"][str(i)] for v in (p, s))
            b, h, w, c = x.shape
            half = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
            y = unit(x, q["conv_a"], t["conv_a"], 2)
            y = unit(y, q["conv_b"], t["conv_b"])
            x = y + conv(half, q["downsample"]["kernel"])
    features["stage3"] = np.maximum(norm(x, p["bn2"], s["bn2"]), 0)
    features["pooled"] = features["stage3"].mean((1, 2))
    for tap, expected in features.items():
        np.testing.assert_allclose(
            outputs.features[tap], expected, rtol=1e-4, atol=1e-4, err_msg=tap
        )
    logits = features["pooled"] @ p["fc"]["kernel"] + p["fc"]["bias"]
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-4)


def test_pooling_averages_the_pixels_inside():
    pooled = average_pool(jnp.ones((1, 3, 3, 2)))
    np.testing.assert_allclose(pooled, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (CELL.replace("~2", "~1"), "for the edges of nodes 1, 2 and 3"),
        ("|none~0|", "for the edges of nodes 1, 2 and 3"),
        (CELL.replace("none", "nune"), "unknown operation 'nune': did you mean 'none'"),
    ],
)
def test_cells_of_another_form_are_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        models.nasbench201(cell)


def test_class_maps_are_a_tap_whose_mean_is_the_logits():
    base = models.cnn(3, (4, 6), 5)
    head = next(k for k in ("fc", "head") if k in random_variables(base)["params"])
    network = networks.with_class_maps(base, "stage1", head)
    variables = random_variables(base)
    image = jnp.asarray(RNG.normal(size=(2, 8, 8, 3)), jnp.float32)
    outputs, _ = jax.jit(network.apply, static_argnames="taps")(
        variables, image, taps=("cam", "pooled")
    )
    assert outputs.features.keys() == {"cam", "pooled"}
    bias = variables["params"][head]["bias"]
    np.testing.assert_allclose(
        outputs.features["cam"].mean((1, 2)) + bias,
        outputs.logits,
        rtol=1e-4,
        atol=1e-5,
    )
    both, _ = network.apply(variables, image, taps=("stage1",))
    assert both.features.keys() == {"stage1"}
    with pytest.raises(ValueError, match="unknown tap 'stage9'"):
        networks.with_class_maps(base, "stage9")
    with pytest.raises(ValueError, match="unknown head 'top'"):
        networks.with_class_maps(base, "stage1", "top").apply(
            variables, image, taps=("cam",)
        )
