"""Mixtures of experts: sorted products are the plain sum, on a mesh too; routers."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import models
from jaxkd.losses import expert_load, load_balance_loss, router_z_loss
from jaxkd.methods import expert_balance
from jaxkd.models.parts.moe import (
    ROUTERS,
    MoE,
    sigmoid_of_top,
    softmax_of_top,
    top_of_softmax,
)
from jaxkd.sharding.mesh import MeshShape, make_mesh

WIDTH, HIDDEN, EXPERTS = 6, 5, 4
X = jax.random.normal(jax.random.key(1), (8, 3, WIDTH))


def layer(**arguments) -> MoE:
    moe = MoE(WIDTH, HIDDEN, EXPERTS, **arguments, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(2), 9))
    # Biases start at 0, and weights too small for a softmax to be uneven.
    params = nnx.state(moe, nnx.Param)
    drawn = jax.tree.map(lambda w: jax.random.normal(next(keys), w.shape), params)
    nnx.update(moe, drawn)
    return moe


def every_expert(moe: MoE, x):
    """All tokens through all experts, weighed: in NumPy, expert by expert."""
    x = np.asarray(x, float)
    logits = np.asarray(moe.router(jnp.asarray(x, jnp.float32)), float)
    gelu = partial(jax.nn.gelu, approximate=False)
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape[:-1]):
        z = logits[place]
        best = np.argsort(-z)[: moe.k]
        p = np.exp(z - z.max())
        weights = {
            "softmax_of_top": p[best] / p[best].sum(),
            "top_of_softmax": p[best] / p.sum(),
            "sigmoid_of_top": 1 / (1 + np.exp(-z[best])),
        }[moe.kind]
        if moe.kind == "sigmoid_of_top":
            weights = weights / weights.sum()
        for e, weight in zip(best, weights, strict=True):
            up = x[place] @ np.asarray(moe.up)[e]
            if moe.up_bias is not None:
                up = up + np.asarray(moe.up_bias)[e]
            if moe.gate is None:
                h = gelu(up)
            else:
                gated = jnp.asarray(x[place] @ np.asarray(moe.gate)[e])
                h = np.asarray(moe.activation(gated)) * up
            y = h @ np.asarray(moe.down)[e]
            if moe.down_bias is not None:
                y = y + np.asarray(moe.down_bias)[e]
            out[place] += weight * np.asarray(y)
    return out


@pytest.mark.parametrize(
    "arguments",
    [
        *({"router": router} for router in ROUTERS),
        {"k": 1, "gated": True, "activation": jax.nn.silu, "use_bias": False},
        {"k": EXPERTS},
    ],
    ids=str,
)
def test_sorted_products_are_the_sum_over_experts(arguments):
    moe = layer(**arguments)
    found = nnx.jit(lambda moe, x: moe(x))(moe, X)
    np.testing.assert_allclose(found, every_expert(moe, X), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_a_mesh_changes_no_number():
    moe = layer()
    graph, params = nnx.split(moe)

    def loss(params, x):
        return jnp.sum(nnx.merge(graph, params)(x) ** 2)

    plain = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, X)
    with jax.set_mesh(make_mesh(MeshShape(data=2, fsdp=2))):
        split = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, X)
    for a, b in zip(*map(jax.tree.leaves, (plain, split)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_an_expert_that_gets_no_token_has_no_gradient():
    moe = layer(k=1, use_bias=False)
    graph, params = nnx.split(moe)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum(nnx.merge(graph, params)(X[:1, :1]) ** 2)

    found = gradient(params)
    used = int(moe.router(X[0, 0]).argmax())
    slopes = np.abs(np.asarray(found["up"].get_value())).sum((1, 2))
    assert (slopes > 0).tolist() == [e == used for e in range(EXPERTS)]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_routers_weigh_the_best():
    logits = jnp.array([[0.0, 2.0, 1.0, -jnp.inf]])
    weights, experts = softmax_of_top(logits, 2)
    np.testing.assert_array_equal(experts, [[1, 2]])
    np.testing.assert_allclose(weights, jax.nn.softmax(jnp.array([[2.0, 1.0]])))
    assert top_of_softmax(logits, 4)[0].sum() == pytest.approx(1)
    assert sigmoid_of_top(logits, 2)[0].sum() == pytest.approx(1)


def test_balance_is_1_where_experts_share_alike():
    even = jnp.eye(EXPERTS) * 30
    assert float(load_balance_loss(even, 1)) == pytest.approx(1, rel=1e-5)
    one = jnp.tile(even[:1], (4, 1))
    assert float(load_balance_loss(one, 1)) == pytest.approx(EXPERTS, rel=1e-5)
    np.testing.assert_allclose(expert_load(even, 1), np.full(EXPERTS, 0.25))
    weights = jnp.array([1.0, 1, 0, 0])
    spoilt = even.at[2:].set(jnp.nan)
    np.testing.assert_allclose(expert_load(spoilt, 1, weights), [0.5, 0.5, 0, 0])
    assert float(load_balance_loss(spoilt, 1, weights)) == pytest.approx(2, rel=1e-5)
    assert float(load_balance_loss(even, 1, 0 * weights)) == 0
    slope = jax.grad(lambda z: load_balance_loss(z, 1))(one / 30)
    assert (slope[:, 0] > 0).all()
    expected = np.log(np.exp(np.asarray(even)).sum(1)) ** 2
    np.testing.assert_allclose(router_z_loss(even), expected, rtol=1e-6)


@pytest.mark.slow
def test_v_moe_is_a_vit_whose_mlps_are_mixtures():
    network = models.vmoe((8, 2, 2), 3, experts=4, every=2, image_size=8, patch_size=4)
    variables = network.init(jax.random.key(0))
    assert "router" not in variables["params"]["blocks"]["0"]["mlp"]
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    outputs, _ = network.apply(variables, images, taps=("block1.router",))
    assert outputs.features["block1.router"].shape == (2, 5, 4)
    assert network.axes[("blocks", "1", "mlp", "up")] == ("expert", "embed", "hidden")
    # All experts alike make the plain transformer, whatever the router says.
    plain = models.vit((8, 2, 2), 3, image_size=8, patch_size=4)
    dense = plain.init(jax.random.key(2))
    mlp = dense["params"]["blocks"]["1"]["mlp"]
    mixture = dict(variables["params"]["blocks"]["1"]["mlp"])
    for name, own in (("up", "fc1"), ("down", "fc2")):
        kernel, bias = mlp[own]["kernel"], mlp[own]["bias"]
        mixture |= {
            name: jnp.stack([kernel] * 4),
            f"{name}_bias": jnp.stack([bias] * 4),
        }
    blocks = dense["params"]["blocks"]
    alike = {
        **dense["params"],
        "blocks": {**blocks, "1": {**blocks["1"], "mlp": mixture}},
    }
    found = network.apply({"params": alike, "stats": {}}, images)[0].logits
    expected = plain.apply(dense, images)[0].logits
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoE(4, 4, 2, 3, rngs=nnx.Rngs(0)), "k is 3, but there are 2 experts"),
        (
            lambda: MoE(4, 4, 2, router=cast(Any, "softmax_of_to"), rngs=nnx.Rngs(0)),
            "unknown router 'softmax_of_to': did you mean 'softmax_of_top'",
        ),
        (lambda: models.vmoe("tiny", experts=2, k=3), "k is 3, but there are 2"),
        (lambda: models.vmoe((10, 2, 3)), "the width a multiple of the heads"),
        (lambda: expert_load(jnp.zeros((2, 3)), 4), "k is 4, but logits has 3"),
        (lambda: expert_balance("block0.router"), "taps must be a sequence"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
