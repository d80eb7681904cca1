"""Importance of heads and neurons, and which of them stay, by the authors' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compression.shrink import (
    compensation_bias,
    global_width_masks,
    group_scores,
    input_statistics,
    magnitude_scores,
    top_mask,
    update_statistics,
    wanda_scores,
    wifv_scores,
)


@pytest.fixture(scope="module")
def golden(load_golden):
    return load_golden("03-amoeballm")


def calibrated(x, welford=False):
    def step(statistics, sequence):
        return update_statistics(statistics, sequence, welford=welford), None

    return jax.lax.scan(step, input_statistics(x.shape[-1]), jnp.asarray(x))[0]


def test_statistics_of_the_authors(golden):
    found = calibrated(golden["bias1/x"])
    np.testing.assert_allclose(found.baseline, golden["bias1/baseline"], 1e-5, 1e-7)
    np.testing.assert_allclose(found.fluctuation, golden["bias1/fluc"], rtol=1e-5)
    assert found.sequences == len(golden["bias1/x"])
    scores = wifv_scores(jnp.asarray(golden["bias1/w"].T), found.fluctuation)
    np.testing.assert_allclose(scores, golden["bias1/wifv"], rtol=1e-5)


def test_welford_keeps_the_old_baseline():
    x = np.random.default_rng(0).normal(1, 1, (2, 5, 3))
    first, both = x[0].mean(0), x.mean((0, 1))
    expected = ((x[1] - both) * (x[1] - first)).sum(0) / 2
    found = calibrated(x.astype("f4"), welford=True)
    np.testing.assert_allclose(found.fluctuation, expected, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.8, 0.65, 0.5])
def test_masks_of_the_authors(golden, ratio):
    heads, neurons = global_width_masks(
        golden["flap1/attn_metric"], golden["flap1/mlp_metric"], ratio, head_dim=128
    )
    np.testing.assert_array_equal(heads, golden[f"flap1/attn_head_mask_{ratio}"])
    np.testing.assert_array_equal(neurons, golden[f"flap1/mlp_mask_{ratio}"])


def test_shared_keys_cost_less():
    attention = np.arange(16.0).reshape(2, 8)
    mlp = np.arange(24.0).reshape(2, 12)
    heads, neurons = global_width_masks(
        attention, mlp, 0.5, head_dim=2, heads_per_group=2
    )
    assert heads.shape == (2, 2)
    # Of 4 groups of 4 parameters each and 24 neurons of 1, half are 20: both late
    # groups and 12 neurons, of which the one at the threshold goes.
    assert heads.tolist() == [[False, True]] * 2
    assert 20 - 2 <= 4 * heads.sum() + neurons.sum() <= 20
    whole = global_width_masks(attention, mlp, 1.0, head_dim=2)
    assert all(mask.all() for mask in whole)


def test_equal_scores_are_finite():
    heads, neurons = global_width_masks(
        np.ones((2, 8)), np.zeros((2, 12)), 0.5, head_dim=2, heads_per_group=2
    )
    assert not heads.any()
    assert not neurons.any()


def test_channels_of_the_other_scores():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)), "f4")
    norms = jnp.arange(12.0).reshape(2, 6)
    expected = (np.abs(weights) * norms[..., None]).sum(-1)
    np.testing.assert_allclose(wanda_scores(weights, norms), expected, rtol=1e-6)
    expected = np.linalg.norm(weights, axis=-1)
    np.testing.assert_allclose(magnitude_scores(weights), expected, rtol=1e-6)
    grouped = group_scores(np.asarray(norms), 3)
    assert grouped.tolist() == [[1.0, 4.0], [7.0, 10.0]]
    assert top_mask(jnp.array([[1.0, 2, 2], [3, 1, 2]]), 1).tolist() == [
        [False, True, False],
        [True, False, False],
    ]


def test_bias_makes_up_for_the_mean(golden):
    keep = jnp.asarray(golden["flap1/mlp_mask_0.5"][0])
    weights = jnp.asarray(golden["flap1/mlp_down_w_L0"].T)
    baseline = jnp.asarray(np.random.default_rng(0).normal(size=len(keep)), "f4")
    bias = compensation_bias(weights, baseline, keep)
    whole, kept = baseline @ weights, (baseline * keep) @ weights
    np.testing.assert_allclose(kept + bias, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: group_scores(x, 3), "size 3 does not divide 4 channels"),
        (
            lambda x: top_mask(jnp.asarray(x), 5),
            "keep must be at most the 4",
        ),
        (lambda x: global_width_masks(x, x, 0.0, head_dim=2), r"ratio must be in"),
        (lambda x: global_width_masks(x, x, 0.5, head_dim=3), "does not divide"),
        (lambda x: global_width_masks(x, x[:, :1], 0.5, head_dim=2), "mlp needs"),
    ],
    ids=["group", "top", "ratio", "head_dim", "one"],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((1, 4), np.float32))
