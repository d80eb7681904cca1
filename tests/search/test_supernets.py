"""One function for a space of networks: each is the zoo's own network."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models.vision.nasbench201 import OPERATIONS, format_cell
from jaxkd.search import cell_supernet, code_similarity, depth_supernet

IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)), jnp.float32)
WIDTHS = (4, 4, 6, 8)


def depths(architecture):
    return models.cifar_resnet(architecture, 5, widths=WIDTHS)


def cells(architecture):
    names = [OPERATIONS[i] for i in architecture]
    return models.nasbench201(format_cell(names), 5, channels=4, cells=2)


SPACES = {
    "depths": (
        depth_supernet(3, 5, widths=WIDTHS),
        depths,
        [(1, 3, 2), (3, 1, 1)],
    ),
    "cells": (
        cell_supernet(5, channels=4, cells=2),
        cells,
        [(3, 2, 1, 0, 4, 3), (1, 1, 4, 1, 0, 1)],
    ),
}


@pytest.fixture(scope="module", params=SPACES)
def space(request):
    supernet, build, architectures = SPACES[request.param]
    shapes = jax.eval_shape(supernet.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes
    )
    apply = jax.jit(supernet.apply, static_argnames=("taps", "train"))
    return supernet, params, apply, build, architectures


def plain(network, params, train):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes(params, shapes["params"])
    stats = jax.tree_util.tree_map_with_path(
        lambda path, s: jnp.full(s.shape, float(path[-1].key == "var")), shapes["stats"]
    )
    apply = jax.jit(network.apply, static_argnames=("taps", "train"))
    variables = {"params": params, "stats": stats}
    return apply(variables, IMAGE, taps=("stage3", "pooled"), train=train)[0]


@pytest.mark.slow
@pytest.mark.parametrize("position", range(2))
def test_every_architecture_is_the_plain_network(space, position):
    supernet, params, apply, build, architectures = space
    architecture = architectures[position]
    train = position != 1
    found = apply(
        params,
        IMAGE,
        jnp.array(architecture),
        taps=("stage3", "pooled"),
        train=train,
    )
    network = build(architecture)
    expected = plain(network, supernet.subnetwork(params, architecture), train)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert found.features.keys() == {"stage3", "pooled"}
    for tap, value in expected.features.items():
        np.testing.assert_allclose(found.features[tap], value, rtol=1e-5, atol=1e-5)


def test_architectures_differ_and_one_compilation_serves_all(space):
    _, params, apply, _, architectures = space
    before = apply._cache_size()
    logits = [apply(params, IMAGE, jnp.array(a)).logits for a in architectures]
    assert apply._cache_size() - before <= 1
    assert not np.allclose(logits[0], logits[1])


def test_an_unknown_tap_is_refused(space):
    supernet, params, _, _, architectures = space
    with pytest.raises(ValueError, match="unknown tap 'stage'"):
        jax.eval_shape(
            lambda p: supernet.apply(
                p, IMAGE, jnp.array(architectures[0]), taps=("stage",)
            ),
            params,
        )


@pytest.mark.slow
def test_codes_are_of_every_relu_and_blocks_left_out_do_not_learn():
    supernet = depth_supernet(2, 5, widths=WIDTHS)
    shapes = jax.eval_shape(supernet.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes
    )

    @jax.jit
    def run(params, architecture):
        def total(params):
            out = supernet.apply(params, IMAGE, architecture, taps=("codes", "stage3"))
            return out.logits.sum(), out.features

        return jax.grad(total, has_aux=True)(params)

    for architecture, relus in [((1, 1, 1), (3, 2, 2)), ((1, 2, 1), (3, 4, 2))]:
        gradients, features = run(params, jnp.array(architecture))
        # An example agrees with itself in every unit: of the stem, and two a block.
        units = sum(
            count * side**2 * width
            for count, side, width in zip(relus, (8, 4, 2), WIDTHS[1:], strict=True)
        )
        np.testing.assert_array_equal(jnp.diagonal(features["codes"]), units)
        assert jnp.all(features["codes"] >= code_similarity(features["stage3"] > 0))
        for i, depth in enumerate(architecture):
            for j in range(2):
                block = gradients["layers"][str(i)][str(j)]
                moved = any(jnp.any(g != 0) for g in jax.tree.leaves(block))
                assert moved == (j < depth)
