"""Edits: an activation is replaced, and the forward pass goes on with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxkd import Network, Outputs, Steps, models, networks

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
KEY = jax.random.key(0)


class Base(nnx.Module):
    """Its call is inherited: what runs is not in the class of the submodule."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 8, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.linear(x))


class Inherited(Base):
    pass


class UserNNX(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Inherited(rngs), nnx.BatchNorm(8, rngs=rngs)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    @nnx.remat
    def body(self, x):
        return self.layers[0](x)

    def __call__(self, x):
        return self.head(self.layers[1](self.body(x)))


class UserLinen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3, name="head")(linen.Dense(8, name="mid")(x))


class Stepped(nnx.Module):
    """A user's model that can be tapped, edited and cut."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)
        self.taps = self.cuts = ("mid",)

    def __call__(self, x, steps=None):
        steps = steps or Steps()
        return steps.outputs(self.head, steps("mid", self.first, x))


def plain(params, x, edits, taps=()):
    mid = x @ params["w"]
    mid = edits["mid"](mid) if "mid" in edits else mid
    return Outputs(mid @ params["v"], {"mid": mid})


NETWORKS = {
    "nnx": lambda: Network.from_nnx(UserNNX, taps={"mid": "layers.0"}),
    "linen": lambda: Network.from_linen(UserLinen(), X, taps={"mid": "mid"}),
    "steps": lambda: Network.from_nnx(Stepped),
    "apply": lambda: Network.from_apply(
        lambda key: {"w": jnp.ones((6, 8)), "v": jnp.ones((8, 3))}, plain, taps=("mid",)
    ),
    "zoo": lambda: models.mlp(6, (8,), 3).astype(jnp.float32),
}


@pytest.fixture(params=sorted(NETWORKS), scope="module")
def network(request):
    return NETWORKS[request.param]()


def test_edits_take_the_activation_s_place(network):
    """Of nothing, of all, and by what is differentiated, in one program."""
    tap = "mid" if "mid" in network.taps else "hidden0"
    variables = jax.jit(network.init)(KEY)

    @jax.jit
    def run(variables, prompt):
        def with_prompt(prompt):
            edits = {tap: lambda x: 0 * x + prompt}
            found, _ = network.apply(variables, X, taps=(tap,), edits=edits)
            return found.logits.sum(), found

        whole, _ = network.apply(variables, X, taps=(tap,))
        same, _ = network.apply(variables, X, edits={tap: lambda x: x}, taps=(tap,))
        both = jax.value_and_grad(with_prompt, has_aux=True)(prompt)
        return whole, same, both

    whole, same, ((_, found), gradient) = run(variables, jnp.ones(8))
    jax.tree.map(np.testing.assert_array_equal, same, whole)
    np.testing.assert_array_equal(found.features[tap], jnp.ones((4, 8)))
    head = variables["params"].get("head", {"kernel": jnp.ones((8, 3)), "bias": 0.0})
    normal = 1.0 if "layers" not in variables["params"] else (1 + 1e-5) ** -0.5
    expected = normal * head["kernel"].sum(0) + head["bias"]
    np.testing.assert_allclose(found.logits, np.tile(expected, (4, 1)), rtol=1e-5)
    expected = 4 * normal * head["kernel"].sum(1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_what_cannot_be_edited_says_so(network):
    variables = jax.jit(network.init)(KEY)
    with pytest.raises(ValueError, match=r"unknown tap 'mld'.*(mid|hidden0)"):
        network.apply(variables, X, edits={"mld": jnp.zeros_like})
    if not network.cuts:
        with pytest.raises(ValueError, match=r"unknown cut 'mid'.* Valid: none"):
            network.segment("mid")

    def apply(params, x):
        return Outputs(x, {"x": x})

    untouched = Network.from_apply(lambda key: {}, apply, taps=("x",))
    with pytest.raises(ValueError, match=r"'x' can be tapped but not edited: have"):
        untouched.apply({"params": {}}, X, edits={"x": jnp.zeros_like})


def test_a_user_s_stepped_model_is_cut():
    network = Network.from_nnx(Stepped, reads=("features",))
    variables = network.init(KEY)
    first, second = network.segment(None, "mid"), network.segment("mid")
    assert first.reads == ("features",)
    assert second.reads == ("activation",)
    middle = first.apply(variables, first.read({"features": X}))[0].logits
    found = second.apply(variables, second.read({"activation": middle}))[0].logits
    np.testing.assert_allclose(found, network.apply(variables, X)[0].logits, rtol=1e-6)
    with pytest.raises(ValueError, match="'mid' must come before stop 'mid'"):
        network.segment("mid", "mid")
    with pytest.raises(ValueError, match="'mid' was not reached between 'mid' and 't"):
        second.apply(variables, middle, taps=("mid",))


def test_the_user_s_class_is_left_as_it_is():
    network = Network.from_nnx(UserNNX, taps={"mid": "layers.0"})
    network.apply(network.init(KEY), X, taps=("mid",), edits={"mid": jnp.zeros_like})
    assert Inherited.__subclasses__()[0].__name__ == "Watching"
    assert "__call__" not in vars(Inherited)
    model = network.to_nnx(network.init(KEY))
    assert type(model.layers[0]) is Inherited


def test_an_ensemble_s_members_are_edited_by_their_position():
    pair = networks.ensemble([models.mlp(6, (8,), 3), models.mlp(6, (5,), 3)], "logits")
    variables = pair.init(KEY)
    edits = {"1.hidden0": jnp.zeros_like}
    found, _ = pair.apply(variables, X, taps=("0.logits", "1.logits"), edits=edits)
    whole, _ = pair.apply(variables, X, taps=("0.logits",))
    np.testing.assert_array_equal(*(o.features["0.logits"] for o in (found, whole)))
    np.testing.assert_array_equal(found.features["1.logits"], jnp.zeros((4, 3)))


def test_blocks_of_a_row_are_edited_one_by_one():
    """In the compiled loop as where it is unrolled, each block by its own function."""
    ids = {"input_ids": jnp.asarray([[3, 1, 4, 1]])}
    edits = {"block1": lambda x: x + 1, "block2.attn": jnp.zeros_like}
    taps = ("block0", "block1", "block2.attn", "block2")
    looped, unrolled = (models.llama(9, 8, 3, 2, 12, scan=s) for s in (True, False))

    @jax.jit
    def run(key):
        variables = looped.init(key)
        found = (
            network.apply(variables, ids, taps=taps, edits=edits)[0]
            for network, edits in ((looped, {}), (looped, edits), (unrolled, edits))
        )
        return variables, *found

    variables, plain, a, b = run(KEY)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, a, b)
    close(a.features["block0"], plain.features["block0"])
    close(a.features["block1"], plain.features["block1"] + 1)
    assert not np.any(a.features["block2.attn"])
    assert not np.allclose(a.features["block2"], plain.features["block2"])
    with pytest.raises(ValueError, match=r"edits\['block1'\] makes float32\(1, 2, 8\)"):
        looped.apply(variables, ids, edits={"block1": lambda x: x[:, :2]})
