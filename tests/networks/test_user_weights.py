"""A user's own weights in every form, in and out; the switches of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxkd import Network, models

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
KEY = jax.random.key(0)


class Deep(nnx.Module):
    """Twelve layers in a list, so that the tenth comes after the second."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(12)])
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.dropout(self.norm(x))


class Normed(linen.Module):
    @linen.compact
    def __call__(self, x, use_running_average=True):
        x = linen.Dense(5)(x)
        return linen.BatchNorm(use_running_average=use_running_average)(x)


@pytest.fixture(scope="module")
def built():
    """Return a module with averages of its own, and what it computes."""
    module = Deep(nnx.Rngs(3))
    module.norm.mean[...] += 0.5
    module.eval()
    return module, module(X)


def pure(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))


def same(tree):
    return tree


@pytest.mark.parametrize(
    "form",
    [
        same,
        nnx.state,
        lambda module: nnx.state(module, nnx.Not(nnx.RngState)),
        lambda module: dict(Network.from_nnx(module).init(KEY)),
        lambda module: {
            "params": nnx.state(module, nnx.Param),
            "stats": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)),
        },
    ],
    ids=["module", "state", "state without keys", "variables", "states"],
)
def test_an_nnx_model_s_weights_come_in_and_go_out(built, form):
    module, expected = built
    network = Network.from_nnx(Deep).with_variables(form(module))
    variables = jax.jit(network.init)(KEY)
    found, _ = network.apply(variables, X)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-6)
    again = network.to_nnx(variables)
    again.eval()
    np.testing.assert_allclose(again(X), expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(again.layers, module.layers, strict=True):
        np.testing.assert_array_equal(a.kernel[...], b.kernel[...])


def test_a_built_module_is_where_a_network_starts(built):
    module, expected = built
    module = nnx.clone(module)
    network = Network.from_nnx(module)
    module.layers[0].kernel[...] = jnp.zeros((6, 6))  # It comes too late.
    variables = network.init(KEY)
    np.testing.assert_allclose(network.apply(variables, X)[0].logits, expected)
    _, after = network.apply(variables, X, train=True, key=KEY)
    before = network.init(KEY)["stats"]["norm"]["mean"]
    assert not np.allclose(after["stats"]["norm"]["mean"], before)
    np.testing.assert_array_equal(before, module.norm.mean[...])


def test_a_linen_model_s_weights_come_in_and_go_out():
    module, network = Normed(), Network.from_linen(Normed(), X)
    theirs = module.init(KEY, X)
    theirs["batch_stats"]["BatchNorm_0"]["mean"] += 0.5
    variables = network.with_variables(theirs).init(KEY)
    found, _ = network.apply(variables, X)
    np.testing.assert_allclose(found.logits, module.apply(theirs, X), rtol=1e-6)
    back = network.to_linen(variables)
    jax.tree.map(np.testing.assert_array_equal, back, theirs)


def test_bare_params_will_do_where_there_is_nothing_else():
    network = models.mlp(6, (5,), 3)
    variables = network.init(KEY)
    for params in (variables["params"], {"params": variables["params"]}):
        found = network.with_variables(params).init(KEY)
        jax.tree.map(np.testing.assert_array_equal, found, variables)
    head = {"kernel": jnp.zeros((5, 2)), "extra": jnp.zeros(1)}
    wrong = {**variables["params"], "head": head}
    message = (
        r"params/head/bias is missing; params/head/extra has no place; "
        r"params/head/kernel has shape \(5, 2\), not \(5, 3\)\. Use those of a network"
    )
    with pytest.raises(ValueError, match=message):
        network.with_variables(wrong)
    cnn = models.cnn(1, (2,), 3)
    params = cnn.init(KEY)["params"]
    with pytest.raises(ValueError, match=r"stats/stages/0/norms/0/mean is missing"):
        cnn.with_variables(params)
    with pytest.raises(ValueError, match="variables is a list: give a network's"):
        network.with_variables([1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(int), "is of .'int32'., not of .'floats'"),
        (lambda x: x.astype(complex), "is of .'complex64'., not of .'floats'"),
        (lambda x: 0.0, r"has shape \(\), not \(5, 3\)"),
        (
            lambda x: np.asarray(x).tolist(),
            r"has shape \[\[\(\), \(\), \(\)\], .*, not",
        ),
        (lambda x: "x", "has shape"),
    ],
)
def test_weights_of_another_kind_are_named(change, message):
    network = models.mlp(6, (5,), 3)
    variables = network.init(KEY)
    head = {**variables["params"]["head"]}
    head["kernel"] = change(head["kernel"])
    with pytest.raises(ValueError, match=rf"params/head/kernel {message}"):
        network.with_variables({**variables["params"], "head": head})
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    assert network.with_variables(half).init(KEY)["params"]["head"]["kernel"].shape


def test_other_networks_are_not_given_back():
    network = models.mlp(6, (5,), 3)
    variables = network.init(KEY)
    assert isinstance(network.to_nnx(variables), nnx.Module)
    with pytest.raises(ValueError, match=r"not Network\.from_linen's"):
        network.to_linen(variables)
    with pytest.raises(ValueError, match=r"not Network\.from_nnx's or the zoo's"):
        network.segment(None, "hidden0").to_nnx(variables)


SWITCHES = ["train", "training", "is_training", "deterministic", "use_running_average"]


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("required", [False, True])
def test_every_common_switch_of_training_is_thrown(name, required):
    on = name.startswith(("t", "i"))

    def call(self, x, switch):
        average = not switch if on else switch
        return linen.BatchNorm(use_running_average=average, momentum=0.5)(x)

    default = "" if required else f"={not on}"
    space = {"call": call}
    exec(f"def f(self, x, {name}{default}): return call(self, x, {name})", space)
    module = type("Model", (linen.Module,), {"__call__": linen.compact(space["f"])})
    network = Network.from_linen(module(), X)
    variables = network.init(KEY)
    outputs, after = network.apply(variables, X, train=True)
    np.testing.assert_allclose(outputs.logits.mean(0), 0, atol=1e-6)
    mean = after["stats"]["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * X.mean(0), rtol=1e-5)
    outputs, after = network.apply(variables, X)
    jax.tree.map(np.testing.assert_array_equal, after, variables)
    np.testing.assert_allclose(outputs.logits, X / (1 + 1e-5) ** 0.5, rtol=1e-5)


class Asking(nnx.Module):
    def __call__(self, x, temperature):
        return x / temperature


class AskingLinen(linen.Module):
    def __call__(self, x, *, temperature):
        return x / temperature


def test_an_argument_that_nobody_knows_is_named():
    message = "the model needs the argument 'temperature'"
    with pytest.raises(ValueError, match=message):
        Network.from_nnx(lambda rngs: Asking())
    with pytest.raises(ValueError, match=message):
        Network.from_linen(AskingLinen(), X)
    with pytest.raises(ValueError, match=message):
        Network.from_apply(lambda key: {}, lambda params, x, temperature: x)
