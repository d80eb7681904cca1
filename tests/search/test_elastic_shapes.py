"""Depths by dynamic programming, spaces of shapes, and what is drawn of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.search import (
    AUTODISTIL_SPACES,
    Shape,
    ShapeSpace,
    bert_parameters,
    enumerate_shapes,
    partition_shapes,
    sandwich_masks,
    sandwich_sample,
    select_depth,
    spread_layers,
)


@pytest.mark.parametrize("case", ["dp1", "dp2"])
def test_depths_of_the_authors(load_golden, case):
    golden = load_golden("03-amoeballm")
    importance, pair, lower, keep_last, least = (
        golden[f"{case}/{name}"]
        for name in ("importance", "pair", "lower_is_better", "keep_last", "min_layers")
    )

    def metric(keep):
        removed = 1 - keep.astype(float)
        value = removed @ importance + removed @ pair @ removed
        return value if lower else -value

    layers = len(importance)
    found = select_depth(
        metric,
        layers,
        layers - int(least),
        keep_last=max(int(keep_last), 0),
        lower_is_better=bool(lower),
    )
    np.testing.assert_array_equal(found.keep[1:], golden[f"{case}/strategy"])
    np.testing.assert_allclose(found.values[1:], golden[f"{case}/metric"], rtol=1e-6)
    assert found.evaluations == golden[f"{case}/n_evals"]


def test_additive_depths_are_the_best_of_all():
    cost = np.random.default_rng(0).normal(size=7)
    found = select_depth(lambda keep: cost[~keep].sum(), 7, 4)
    for removed in range(1, 5):
        sets = itertools.combinations(range(7), removed)
        least = min(cost[list(s)].sum() for s in sets)
        assert found.values[removed] == pytest.approx(least)
        assert (~found.keep[removed]).sum() == removed
    assert found.evaluations == sum(7 - m + 1 for m in range(1, 5))


def test_depths_that_cannot_be_chosen():
    with pytest.raises(ValueError, match="max_removed must be below the 3 layers"):
        select_depth(lambda keep: 0.0, 4, 3, keep_last=1)
    with pytest.raises(ValueError, match=r"metric is NaN for keep \[1, 1, 0\]"):
        select_depth(lambda keep: float("nan"), 3, 1)
    infinite = select_depth(lambda keep: float("inf"), 3, 2)
    assert infinite.keep.sum(1).tolist() == [3, 2, 1]


def test_spread_layers_are_the_authors():
    assert spread_layers(12, 7) == (0, 1, 3, 5, 6, 8, 10)
    assert spread_layers(4, 2) == (0, 2)
    with pytest.raises(ValueError, match=r"kept must be at most layers \(2\), got 3"):
        spread_layers(2, 3)


@pytest.mark.parametrize(("case", "space"), [("small", "small"), ("tiny_top", "tiny")])
def test_spaces_of_the_authors(load_golden, case, space):
    golden = load_golden("28-autodistil")

    def size(shape):
        return bert_parameters(shape, paper_formula=True)

    found = enumerate_shapes(AUTODISTIL_SPACES[space].shapes(), size)
    expected = golden[f"space_{case}/params_sorted"]
    largest = found[-len(expected) :]
    np.testing.assert_allclose([size(s) for s in largest], expected, rtol=1e-6)
    scale = np.array([12, 12, 768, 1])
    multipliers = sorted(map(tuple, np.round(golden[f"space_{case}/subs_sorted"], 9)))
    ours = sorted(map(tuple, np.round(np.array(largest) / scale, 9)))
    np.testing.assert_allclose(ours, multipliers)


def test_parameters_are_those_of_bert_base():
    assert bert_parameters(Shape(12, 12, 768, 4)) == 109_482_240


def test_budgets_and_parts():
    shapes = ShapeSpace((1, 2), (1,), (8, 16), (2.0, 4.0)).shapes()
    ordered = enumerate_shapes(shapes, bert_parameters)
    sizes = [bert_parameters(s) for s in ordered]
    assert sizes == sorted(sizes)
    assert enumerate_shapes(shapes, bert_parameters, sizes[2]) == ordered[:3]
    assert partition_shapes(ordered, 3) == [ordered[:2], ordered[2:5], ordered[5:]]
    with pytest.raises(ValueError, match="budget 3 allows none of 8 shapes"):
        enumerate_shapes(shapes, bert_parameters, 3)
    with pytest.raises(ValueError, match="parts must be at most 8 shapes, got 9"):
        partition_shapes(ordered, 9)
    with pytest.raises(ValueError, match="heads needs at least one choice"):
        ShapeSpace((1,), (), (8,), (2.0,))


def test_sandwich_of_static_shapes():
    key = jax.random.key(0)
    shapes = [Shape(layers, 1, 8, 2.0) for layers in range(1, 7)]
    drawn = sandwich_sample(key, shapes, 4)
    assert drawn[:2] == [shapes[-1], shapes[0]]
    assert sorted(drawn[2:]) == shapes[1:-1]
    assert sandwich_sample(key, shapes, 4) == drawn
    with pytest.raises(ValueError, match="randoms must be at most"):
        sandwich_sample(key, shapes[:3])


def test_sandwich_of_masks():
    keep = jnp.tril(jnp.ones((4, 4), bool))[::-1]
    draw = jax.jit(jax.vmap(lambda key: sandwich_masks(key, keep, 4)))
    layers, widths = draw(jax.random.split(jax.random.key(0), 200))
    depth = layers.sum(-1)
    assert (depth[:, jnp.array([0, -1])] == jnp.array([4, 1])).all()
    assert (widths[:, jnp.array([0, -1])] == jnp.array([0, 3])).all()
    assert set(depth[:, 1:3].ravel().tolist()) == {1, 2, 3}
    assert set(widths[:, 1:3].ravel().tolist()) == {0, 1, 2, 3}
    assert (widths[:, 1] != widths[:, 2]).all()
    with pytest.raises(ValueError, match=r"randoms must be at most widths \(1\)"):
        sandwich_masks(jax.random.key(0), keep, 1)
    with pytest.raises(ValueError, match="keep must have a row for 0"):
        sandwich_masks(jax.random.key(0), keep[:1], 4)
