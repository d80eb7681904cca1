"""Mixtures of experts: sorted products are the plain sum, on a mesh too; routers."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import models
from jaxkd.adapters.flax_nnx import split_module
from jaxkd.losses import expert_load, load_balance_loss, router_z_loss
from jaxkd.methods import expert_balance
from jaxkd.models.parts.moe import Mixture, MoE
from jaxkd.models.parts.routers import (
    sigmoid_of_top,
    softmax_of_top,
    top_of_softmax,
)
from jaxkd.sharding.mesh import MeshShape, make_mesh
from jaxkd.training.ahead import slice_devices
from jaxkd.training.costs import program_costs
from jaxkd.types import Outputs

WIDTH, HIDDEN, EXPERTS = 6, 5, 4
X = jax.random.normal(jax.random.key(1), (8, 3, WIDTH))


def layer(**arguments) -> MoE:
    mixture = Mixture(HIDDEN, EXPERTS, **arguments)
    moe = MoE(WIDTH, mixture, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(2), 9))
    # Biases start at 0, and weights too small for a softmax to be uneven.
    params = nnx.state(moe)
    drawn = jax.tree.map(lambda w: jax.random.normal(next(keys), w.shape), params)
    nnx.update(moe, drawn)
    return moe


def chosen_by(mixture, logits, bias):
    """The experts of each token, one token after another."""
    found = np.zeros(logits.shape, bool)
    for z, row in zip(logits, found, strict=True):
        scores = z if bias is None else 1 / (1 + np.exp(-z)) + bias
        groups = scores.reshape(mixture.groups, -1)
        if mixture.groups > 1:
            best = np.argsort(np.sort(groups)[:, -2:].sum(1))[-mixture.top_groups :]
            closed = [i for i in range(mixture.groups) if i not in best]
            groups[closed] = -np.inf
        row[np.argsort(groups.reshape(-1))[-mixture.k :]] = True
    return found


def every_expert(mixture, chosen, params, x):
    """All tokens through all experts, weighed; 0 for those not chosen."""
    x = x.reshape(-1, x.shape[-1])
    logits = x @ params["router"]["kernel"] + params["router"].get("bias", 0)
    scores = {
        "softmax_of_top": jnp.exp(logits) * chosen,
        "top_of_softmax": jnp.exp(logits),
        "sigmoid_of_top": chosen / (1 + jnp.exp(-logits)),
    }[mixture.router]
    weights = mixture.scale * chosen * scores / scores.sum(-1, keepdims=True)
    total = jnp.zeros_like(x)
    for e in range(mixture.experts):
        w = {k: v[e] for k, v in params.items() if k not in ("router", "choice_bias")}
        up = x @ w["up"] + w.get("up_bias", 0)
        if mixture.activation == "gelu":
            h = jax.nn.gelu(up, approximate=False)
        else:
            gate = x @ w["gate"] + w.get("gate_bias", 0)
            if mixture.activation == "clamped_swiglu":
                gate, up = jnp.minimum(gate, 7), jnp.clip(up, -7, 7) + 1
            slope = 1.702 if mixture.activation == "clamped_swiglu" else 1
            h = gate / (1 + jnp.exp(-slope * gate)) * up
        total += weights[:, e, None] * (h @ w["down"] + w.get("down_bias", 0))
    return total


VARIANTS = {
    "fastmoe": {},
    "vmoe": {"router": "top_of_softmax", "k": 1},
    "mixtral": {"activation": "swiglu", "use_bias": False},
    "gpt_oss": {"activation": "clamped_swiglu"},
    "deepseek": {
        "router": "sigmoid_of_top",
        "activation": "swiglu",
        "use_bias": False,
        "groups": 2,
        "choice_bias": True,
        "scale": 1.7,
    },
    "all": {"k": EXPERTS, "router": "sigmoid_of_top"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sorted_products_are_the_sum_over_experts(variant):
    moe = layer(**VARIANTS[variant])
    mixture, (graph, params, rest) = moe.mixture, nnx.split(moe, nnx.Param, ...)

    def loss(params, x):
        out = nnx.merge(graph, params, rest)(3 * x)
        return jnp.vdot(out, jnp.cos(jnp.arange(X.size, dtype=out.dtype))), out

    slope = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, out), found = slope(params, X)
    with jax.enable_x64(True):
        state, stats = split_module(moe)
        state = jax.tree.map(lambda w: jnp.asarray(np.asarray(w, float)), state)
        x = jnp.asarray(np.asarray(X, float))
        logits = 3 * x.reshape(-1, WIDTH) @ state["router"]["kernel"]
        logits += state["router"].get("bias", 0)
        bias = np.asarray(stats["choice_bias"], float) if stats else None
        chosen = chosen_by(mixture, np.array(logits), bias)

        def plain(params, x):
            out = every_expert(mixture, chosen, params, 3 * x)
            return jnp.vdot(out, jnp.cos(jnp.arange(X.size, dtype=out.dtype))), out

        (_, expected), slopes = jax.jit(
            jax.value_and_grad(plain, (0, 1), has_aux=True)
        )(state, x)
    found, expected = (out.reshape(-1, WIDTH), found), (expected, slopes)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fastmoe", "deepseek"])
@pytest.mark.parametrize(
    "shape",
    [MeshShape(data=2, fsdp=2), MeshShape(fsdp=2, tensor=2), MeshShape(tensor=4)],
    ids=["fsdp2", "fsdp2-tensor2", "tensor4"],
)
def test_a_mesh_changes_no_number(shape, variant):
    graph, params, rest = nnx.split(layer(**VARIANTS[variant]), nnx.Param, ...)

    def loss(params, x):
        return jnp.sum(nnx.merge(graph, params, rest)(x) ** 2)

    plain = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, X)
    with jax.set_mesh(make_mesh(shape)):
        split = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, X)
    for a, b in zip(*map(jax.tree.leaves, (plain, split)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


ROWS, WIDE, MANY = 2048, 256, 16


def compiled(mesh: MeshShape) -> Any:
    """A layer whose sizes fill TPUs' registers, and its gradient, for a mesh."""
    mixture = Mixture(WIDE, MANY, 2, activation="swiglu", use_bias=False)
    mesh_ = make_mesh(mesh, slice_devices("v5e:2x2")[: mesh.tensor])
    moe = nnx.eval_shape(lambda: MoE(WIDE, mixture, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(moe)
    spec = jax.sharding.PartitionSpec("tensor" if mesh.tensor > 1 else None)
    where = jax.sharding.NamedSharding(mesh_, spec)

    def placed(x, own):
        sharding = where if own else jax.sharding.NamedSharding(mesh_, type(spec)())
        return jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=sharding)

    params = jax.tree.map(lambda x: placed(x, x.ndim == 3), params)
    x = placed(jax.ShapeDtypeStruct((4, ROWS // 4, WIDE), jnp.bfloat16), False)

    def loss(params, x):
        return (nnx.merge(graph, params)(x).astype(jnp.float32) ** 2).sum()

    with jax.sharding.use_abstract_mesh(mesh_.abstract_mesh):
        return jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 4])
def test_only_the_experts_of_a_token_are_computed_for_it(tensor):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    found = program_costs(compiled(MeshShape(tensor=tensor)).as_text())
    active = 3 * 2 * ROWS * 2 * 3 * WIDE**2
    assert active <= found.flops <= 1.1 * active
    # On a mesh tokens' sums are exchanged, and no expert's weights are.
    experts = 3 * 2 * MANY * WIDE**2
    assert sum(found.collectives.values()) < (experts if tensor > 1 else 1)


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
    # Sigmoids that are 0 in float32 still have shares, and a gradient.
    low = jnp.array([[-2e4, -1e4, -1e4, -3e4]])
    (shares, experts), slope = (
        sigmoid_of_top(low, 2),
        jax.jacobian(lambda z: sigmoid_of_top(z, 2)[0])(low),
    )
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(shares.sum(), 1)


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
    # Shares of sigmoids, and extremes of them.
    shares = jax.nn.sigmoid(even) / jax.nn.sigmoid(even).sum(1, keepdims=True)
    expected = EXPERTS * np.mean(shares, 0) @ np.full(EXPERTS, 0.25)
    found = load_balance_loss(even, 1, scores="sigmoid")
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert np.isfinite(load_balance_loss(1e4 * (even - 40), 1, scores="sigmoid"))
    slope = jax.grad(lambda z: load_balance_loss(z, 1))(one / 30)
    assert (slope[:, 0] > 0).all()
    expected = np.log(np.exp(np.asarray(even)).sum(1)) ** 2
    np.testing.assert_allclose(router_z_loss(even), expected, rtol=1e-6)


def test_within_sequences_the_load_is_each_ones_own():
    logits = jnp.stack([jnp.eye(EXPERTS) * 30, jnp.zeros((EXPERTS, EXPERTS))])
    logits = logits.at[1, :, 0].set(30.0)
    mask = {"attention_mask": jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])}
    found = {}
    for by_sequence in (True, False):
        method = expert_balance(["router"], 1, z=0.0, by_sequence=by_sequence)

        @jax.jit
        def value(logits, loss=method.loss):
            outputs = Outputs(jnp.zeros(2), {"router": logits})
            return loss({"state": {}}, outputs, None, mask, None, 0)[0].value

        found[by_sequence] = float(value(logits))
    # One sequence is balanced, the other sends all to one expert of four.
    assert found[True] == pytest.approx((1 + 4) / 2, rel=1e-5)
    assert found[False] == pytest.approx(4 * (0.5**2 + 3 * (1 / 6) ** 2), rel=1e-5)


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
        (lambda: Mixture(4, 2, 3), "k is 3, but there are 2 experts"),
        (
            lambda: Mixture(4, 2, router=cast(Any, "softmax_of_to")),
            "router .*'softmax_of_to'.* 'softmax_of_top'",
        ),
        (
            lambda: Mixture(4, 2, activation=cast(Any, "swigl")),
            "activation .*'swigl'.* 'swiglu'",
        ),
        (lambda: Mixture(4, 4, groups=2), "groups and choice_bias are of sigmoid_of"),
        (
            lambda: Mixture(4, 6, 4, "sigmoid_of_top", groups=2),
            "6 experts in 2 groups, of which a token's 4 are of 1: groups must be",
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
