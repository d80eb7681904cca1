"""Sparse networks: masks by path, scales, straight-through forwards, deployment."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compression.prune.sparsity import (
    check_sparse,
    masked_magnitude_ratio,
    named,
    nested,
    nm_masks,
    pack_weights,
    prune,
    unpack_weights,
    wanda_score,
    weights_in_scope,
)
from jaxkd.compression.sparse_training import (
    finalize,
    fold_scales,
    scaled,
    straight_through,
    weight_scale,
)
from jaxkd.network import Network

KEY = jax.random.key(0)
SCOPE = r"(layers|blocks)\..*kernel"


def stacked():
    """Two layers under one array, as a scan has them, and a head out of scope."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "blocks": {"up": {"kernel": draw(2, 16, 6), "bias": draw(2, 6)}},
        "layers": [{"kernel": draw(4, 3)}],
        "head": {"kernel": draw(6, 3)},
    }


def linear():
    """A network whose output is its inputs times one weight matrix."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(8, 3)), jnp.float32)
    return Network.from_apply(
        lambda key: {"layers": {"kernel": weights}},
        lambda params, inputs: inputs @ params["layers"]["kernel"],
    )


def test_weights_are_chosen_by_the_end_of_their_path():
    params = stacked()
    assert set(weights_in_scope(params, SCOPE)) == {
        "blocks.up.kernel",
        "layers.0.kernel",
    }
    assert set(weights_in_scope({"student": params}, "head.kernel")) == {
        "student.head.kernel"
    }
    with pytest.raises(ValueError, match=r"scope 'up'.*blocks\.up\.bias"):
        weights_in_scope(params, "up")
    with pytest.raises(ValueError, match=r"matches layers\.bias of shape \(3,\)"):
        weights_in_scope({"layers": {"bias": jnp.ones(3)}}, r"layers\.bias")


def test_names_and_nests_undo_each_other():
    tree = {"a": {"b": {"kernel": jnp.ones(2)}, "c": jnp.zeros(1)}}
    again = nested(named(tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)


def test_masks_run_along_the_inputs_of_every_layer():
    params = stacked()
    masks = nm_masks(params, SCOPE)
    for name, mask in masks.items():
        weight = np.abs(named(params)[name])
        groups = (*weight.shape[:-2], -1, 4, weight.shape[-1])
        split, kept = weight.reshape(groups), np.asarray(mask).reshape(groups)
        assert (kept.sum(-2) == 2).all()
        low = np.where(kept, split, np.inf).min(-2)
        assert (np.where(kept, 0, split).max(-2) <= low).all()
    reversed_scores = {name: 1 / jnp.abs(named(params)[name]) for name in masks}
    other = nm_masks(params, SCOPE, scores=reversed_scores)
    assert all((other[name] == ~masks[name]).all() for name in masks)
    with pytest.raises(ValueError, match=r"scores has none for layers\.0\.kernel"):
        nm_masks(params, SCOPE, scores={"blocks.up.kernel": masks["blocks.up.kernel"]})


def test_pruning_touches_the_scope_alone():
    params = stacked()
    masks = nm_masks(params, SCOPE)
    assert masked_magnitude_ratio(params, masks) > 0.1
    with pytest.raises(ValueError, match=r"blocks\.up\.kernel has a group of 4 inputs"):
        check_sparse(params, SCOPE)
    pruned = prune(params, masks)
    np.testing.assert_array_equal(pruned["head"]["kernel"], params["head"]["kernel"])
    report = check_sparse(pruned, SCOPE)
    assert (report.weights, report.nonzero) == (204, 102)
    assert (report.groups, report.exact) == (51, 51)
    assert masked_magnitude_ratio(pruned, masks) == 0
    pruned["layers"][0]["kernel"] = jnp.zeros((4, 3))
    assert check_sparse(pruned, SCOPE).exact == 48


def test_the_ratio_is_of_means():
    params = {"layers": {"kernel": jnp.array([[1.0], [-2.0], [0.5], [0.1]])}}
    masks = nm_masks(params, SCOPE)
    np.testing.assert_allclose(masked_magnitude_ratio(params, masks), 0.3 / 1.5)
    masks = nm_masks(params, SCOPE, n=1)
    np.testing.assert_allclose(masked_magnitude_ratio(params, masks), 1.6 / 3 / 2)


def test_wanda_weighs_inputs_by_their_norm():
    weights = jnp.array([[[1.0, -2.0], [3.0, 4.0]]])
    norms = jnp.array([[10.0, 1.0]])
    np.testing.assert_array_equal(
        wanda_score(weights, norms), [[[10.0, 20.0], [3.0, 4.0]]]
    )


def test_wanda_keeps_more_of_the_outputs_than_magnitudes():
    """Where nothing is retrained and inputs differ in size, that is its purpose."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 64)) * np.exp(rng.normal(size=64))
    weights = rng.normal(size=(64, 16))
    params = {"layers": {"kernel": jnp.asarray(weights, jnp.float32)}}
    score = wanda_score(
        params["layers"]["kernel"], jnp.asarray(np.linalg.norm(x, axis=0), jnp.float32)
    )
    errors = []
    for scores in (None, {"layers.kernel": score}):
        mask = nm_masks(params, SCOPE, scores=scores)["layers.kernel"]
        errors.append(np.square(x @ (weights * ~np.asarray(mask))).sum())
    assert errors[1] < 0.8 * errors[0]


def test_packed_weights_unpack_to_themselves():
    params = stacked()
    pruned, _ = finalize(params, SCOPE)
    packed = pack_weights(pruned, SCOPE)
    bytes_ = sum(x.nbytes for x in jax.tree.leaves(packed["blocks"]["up"]["kernel"]))
    assert bytes_ < 0.6 * pruned["blocks"]["up"]["kernel"].nbytes
    chex.assert_trees_all_equal(unpack_weights(packed), pruned)
    with pytest.raises(ValueError, match=r"prune it first"):
        pack_weights(params, SCOPE)


def test_scales_are_of_contiguous_groups_of_inputs():
    weights = jnp.ones((8, 3))
    scales = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expected = np.repeat(np.asarray(scales), 4, axis=0)
    np.testing.assert_array_equal(weight_scale(weights, scales), expected)
    with pytest.raises(ValueError, match=r"scales has shape \(3, 3\)"):
        weight_scale(weights, jnp.ones((3, 3)))
    with pytest.raises(ValueError, match=r"groups 3 does not divide the 8 inputs"):
        scaled(linear(), SCOPE, groups=3).init(KEY)


def test_scales_train_and_fold():
    plain, network = linear(), scaled(linear(), SCOPE)
    variables, inputs = network.init(KEY), jnp.arange(16.0).reshape(2, 8)
    np.testing.assert_array_equal(
        network.apply(variables, inputs)[0].logits,
        plain.apply(plain.init(KEY), inputs)[0].logits,
    )

    def loss(params):
        outputs, after = network.apply({**variables, "params": params}, inputs)
        assert after["params"] is params
        return jnp.sum(outputs.logits**2)

    gradient = jax.grad(loss)(variables["params"])
    scale, kernel = gradient["scales"], gradient["network"]["layers"]["kernel"]
    # A scale's gradient is the sum over its group of the weights' times the weights.
    weights = variables["params"]["network"]["layers"]["kernel"]
    expected = (kernel * weights).reshape(2, 4, 3).sum(1)
    np.testing.assert_allclose(
        scale["layers"]["kernel"]["scale"], expected, rtol=1e-5, atol=1e-3
    )
    params = jax.tree.map(lambda p, g: p - 1e-4 * g, variables["params"], gradient)
    pruned = prune(params, nm_masks(params, SCOPE))
    expected = network.apply({**variables, "params": pruned}, inputs)[0].logits
    folded, report = finalize(params, SCOPE)
    assert (report.exact, report.nonzero) == (6, 12)
    np.testing.assert_allclose(
        plain.apply({"params": folded, "stats": {}}, inputs)[0].logits,
        expected,
        rtol=1e-6,
    )
    # Masks are of the weights without scales: a large scale revives nothing.
    params["scales"]["layers"]["kernel"]["scale"] = jnp.array([[1.0] * 3, [1e3] * 3])
    np.testing.assert_array_equal(
        finalize(params, SCOPE)[0]["layers"]["kernel"] != 0,
        nm_masks(params, SCOPE)["network.layers.kernel"],
    )
    assert fold_scales(params)["layers"]["kernel"].shape == (8, 3)


def test_straight_through_computes_sparse_and_learns_dense():
    plain = linear()
    network = straight_through(plain, SCOPE, decay=0.5)
    variables, inputs = network.init(KEY), jnp.ones((1, 8))
    weights = variables["params"]["layers"]["kernel"]
    mask = nm_masks(variables["params"], SCOPE)["layers.kernel"]

    def value(params):
        outputs, _ = network.apply({**variables, "params": params}, inputs, train=True)
        return outputs.logits.sum()

    total, gradient = jax.value_and_grad(value)(variables["params"])
    np.testing.assert_allclose(total, jnp.where(mask, weights, 0).sum(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient["layers"]["kernel"], 1 + jnp.where(mask, 0, 0.5 * weights), rtol=1e-6
    )


def test_masks_follow_the_weights_in_training_only():
    network = straight_through(linear(), SCOPE, mask_every=2)
    variables = network.init(KEY)
    inputs = jnp.eye(8)

    def nonzero(variables, train):
        outputs, variables = network.apply(variables, inputs, train=train)
        return outputs.logits != 0, variables

    first, _ = nonzero(variables, False)
    turned = {"layers": {"kernel": 1 / variables["params"]["layers"]["kernel"]}}
    moved = {**variables, "params": turned}
    same, _ = nonzero(moved, False)
    np.testing.assert_array_equal(same, first)
    # Training steps 0 and 2 renew the masks, 1 does not.
    found, moved = nonzero(moved, True)
    np.testing.assert_array_equal(found, ~first)
    back = {**moved, "params": variables["params"]}
    found, back = nonzero(back, True)
    np.testing.assert_array_equal(found, ~first)
    found, back = nonzero(back, True)
    np.testing.assert_array_equal(found, first)
    assert back["stats"].count == 3
    with pytest.raises(ValueError, match=r"mask_every must be at least 1"):
        straight_through(linear(), SCOPE, mask_every=0)
