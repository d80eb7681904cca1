"""Networks of NNX, Linen and plain functions: pure, and tapped by path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxkd import Network, Outputs, models, networks

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)


class UserNNX(nnx.Module):
    """A user's model: no taps, no Outputs, BatchNorm and dropout inside."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [
                nnx.Linear(6, 8, rngs=rngs),
                nnx.BatchNorm(8, rngs=rngs),
                nnx.Dropout(0.5, rngs=rngs),
            ]
        )
        self.head = nnx.Sequential(
            nnx.Linear(8, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs)
        )

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class UserLinen(linen.Module):
    """The same in Linen, with a train flag."""

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Dense(8)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(3)(linen.relu(linen.Dense(8)(x)))


NETWORKS = {
    "nnx": lambda: Network.from_nnx(
        UserNNX, taps={"first": "layers.0", "mid": "head.layers.0"}
    ),
    "linen": lambda: Network.from_linen(
        UserLinen(), IMAGES, taps={"first": "Dense_0", "mid": "Dense_1"}
    ),
}


@pytest.fixture(params=sorted(NETWORKS))
def network(request):
    return NETWORKS[request.param]()


def test_taps_capture_submodules_by_path(network):
    variables = jax.jit(network.init)(jax.random.key(0))
    outputs, after = network.apply(variables, IMAGES, taps=("first", "mid"))
    assert outputs.logits.shape == (4, 3)
    assert set(outputs.features) == {"first", "mid"}
    flat = {"/".join(map(str, p)): v for p, v in _paths(variables["params"])}
    kernel = flat.get("layers/0/kernel", flat.get("Dense_0/kernel"))
    bias = flat.get("layers/0/bias", flat.get("Dense_0/bias"))
    np.testing.assert_allclose(
        outputs.features["first"], IMAGES @ kernel + bias, rtol=1e-5, atol=1e-6
    )
    jax.tree.map(np.testing.assert_array_equal, after, variables)
    plain, _ = network.apply(variables, IMAGES)
    assert plain.features == {}
    np.testing.assert_array_equal(plain.logits, outputs.logits)


def _paths(tree):
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [([entry.key for entry in path], leaf) for path, leaf in found]


@pytest.mark.slow
def test_training_mode_updates_stats_and_draws_from_the_key(network):
    variables = jax.jit(network.init)(jax.random.key(0))

    @jax.jit
    def forward(variables, key):
        return network.apply(variables, IMAGES, train=True, key=key)

    first, after = forward(variables, jax.random.key(1))
    same, _ = forward(variables, jax.random.key(1))
    other, _ = forward(variables, jax.random.key(2))
    np.testing.assert_array_equal(first.logits, same.logits)
    assert not np.array_equal(first.logits, other.logits)
    assert jax.tree.structure(after) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, after["params"], variables["params"])
    pairs = zip(
        jax.tree.leaves(after["stats"]),
        jax.tree.leaves(variables["stats"]),
        strict=True,
    )
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_pure_under_grad_and_vmap(network):
    variables = jax.jit(network.init)(jax.random.key(0))

    def loss(params, x):
        return network.apply({**variables, "params": params}, x)[0].logits.sum()

    before = jax.tree.map(np.asarray, variables)
    gradients = jax.jit(jax.grad(loss))(variables["params"], IMAGES)
    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    jax.tree.map(np.testing.assert_array_equal, before, variables)
    seeds = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 3))
    outputs, _ = jax.vmap(lambda v: network.apply(v, IMAGES))(seeds)
    assert outputs.logits.shape == (3, 4, 3)
    assert not np.allclose(outputs.logits[0], outputs.logits[1])


def test_init_is_a_function_of_the_key(network):
    a, b = (jax.jit(network.init)(jax.random.key(0)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_unknown_taps_and_paths_are_answered_with_the_closest(network):
    variables = jax.jit(network.init)(jax.random.key(0))
    with pytest.raises(ValueError, match="unknown tap 'frist': did you mean 'first'"):
        network.apply(variables, IMAGES, taps=("frist",))
    with pytest.raises(ValueError, match=r"did you mean 'head.layers.0'"):
        Network.from_nnx(UserNNX, taps={"x": "head.layer.0"})
    with pytest.raises(ValueError, match=r"did you mean 'Dense_0'"):
        Network.from_linen(UserLinen(), IMAGES, taps={"x": "Dense0"})


def test_dropout_without_a_key_is_refused():
    network = NETWORKS["nnx"]()
    with pytest.raises(ValueError, match="key is None"):
        network.apply(jax.jit(network.init)(jax.random.key(0)), IMAGES, train=True)


class Twice(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(6, 6, rngs=rngs)
        self.pair = Pair()

    def __call__(self, x):
        return self.pair(self.layer(self.layer(x)))[0]


class Pair(nnx.Module):
    def __call__(self, x):
        return x, x


@pytest.mark.parametrize(
    ("path", "message"), [("layer", "ran 2 times"), ("pair", "returned a tuple")]
)
def test_ambiguous_taps_are_refused(path, message):
    network = Network.from_nnx(Twice, taps={"t": path})
    with pytest.raises(ValueError, match=message):
        network.apply(jax.jit(network.init)(jax.random.key(0)), IMAGES, taps=("t",))


def test_a_model_that_returns_no_array_is_refused():
    network = Network.from_nnx(lambda rngs: Pair())
    with pytest.raises(ValueError, match=r"returned a tuple.*from_apply"):
        network.apply(jax.jit(network.init)(jax.random.key(0)), IMAGES)


class ByName(nnx.Module):
    """Its constructor takes random numbers by name alone, as Flax's own layers do."""

    def __init__(self, width=3, *, rngs):
        self.layer = nnx.Linear(6, width, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


def test_a_class_is_built_whose_random_numbers_have_a_name():
    network = Network.from_nnx(ByName)
    outputs, _ = network.apply(network.init(jax.random.key(0)), IMAGES)
    assert outputs.logits.shape == (len(IMAGES), 3)


class Sized(ByName):
    def __init__(self, width, *, rngs):
        super().__init__(width, rngs=rngs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network.from_nnx(UserLinen()), "a Linen module: use Network.from_li"),
        (lambda: Network.from_nnx(UserLinen), "a Linen module: use Network.from_linen"),
        (
            lambda: Network.from_nnx(Sized),
            "Sized, takes width, rngs, .* lambda rngs: S",
        ),
        (lambda: Network.from_nnx(lambda: ByName(rngs=nnx.Rngs(0))), "takes nothing"),
        (lambda: Network.from_nnx(lambda rngs: 3), "must return an nnx.Module"),
        (lambda: Network.from_linen(UserLinen, IMAGES), "a built flax.linen.Module"),
        (lambda: Network.from_linen(ByName, IMAGES), "from_nnx takes NNX's"),
        (lambda: Network.from_linen(UserLinen(), 3), "example is 3: give the inputs"),
    ],
)
def test_what_is_no_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_from_apply_passes_what_the_function_takes():
    def apply(params, x, train):
        return Outputs(x @ params + train, {"in": x, "out": x})

    network = Network.from_apply(lambda key: jnp.eye(6), apply, taps=("in", "out"))
    variables = jax.jit(network.init)(jax.random.key(0))
    outputs, _ = network.apply(variables, IMAGES, taps=("in",), train=True)
    assert set(outputs.features) == {"in"}
    np.testing.assert_allclose(outputs.logits, IMAGES + 1)
    plain = Network.from_apply(lambda key: jnp.eye(6), lambda params, x: x @ params)
    np.testing.assert_allclose(plain.apply(variables, IMAGES)[0].logits, IMAGES)


def test_with_variables_starts_from_a_copy():
    network = models.mlp(6, (5,), 3)
    variables = network.init(jax.random.key(3))
    again = network.with_variables(variables).init(jax.random.key(99))
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    originals = {id(x) for x in jax.tree.leaves(variables)}
    assert not originals & {id(x) for x in jax.tree.leaves(again)}


def test_bf16_network_computes_in_bf16_and_keeps_stats():
    network = models.cnn(1, (4, 8), 3)
    half = network.astype(jnp.bfloat16)
    variables = jax.jit(half.init)(jax.random.key(0))
    assert {x.dtype.name for x in jax.tree.leaves(variables["params"])} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(variables["stats"])} == {"float32"}
    images = jnp.ones((2, 8, 8, 1))
    outputs, after = jax.jit(partial(half.apply, taps=("stage1",)))(variables, images)
    assert outputs.logits.dtype == outputs.features["stage1"].dtype == jnp.bfloat16
    assert jax.tree.map(jnp.dtype, after) == jax.tree.map(jnp.dtype, variables)
    full, _ = network.apply(jax.jit(network.init)(jax.random.key(0)), images)
    np.testing.assert_allclose(outputs.logits.astype("f4"), full.logits, atol=0.05)


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_ensemble_averages(mean):
    parts = [models.mlp(6, (5,), 3), models.mlp(6, (4, 4), 3)]
    network = networks.ensemble(parts, mean)
    variables = jax.jit(network.init)(jax.random.key(0))
    outputs, _ = network.apply(variables, IMAGES, taps=("1.hidden1", "0.logits"))
    logits = [
        part.apply(networks.member(variables, i), IMAGES)[0].logits
        for i, part in enumerate(parts)
    ]
    if mean == "logits":
        np.testing.assert_allclose(outputs.logits, sum(logits) / 2, rtol=1e-5)
    else:
        expected = sum(map(jax.nn.softmax, logits)) / 2
        np.testing.assert_allclose(jax.nn.softmax(outputs.logits), expected, rtol=1e-5)
    assert outputs.features["1.hidden1"].shape == (4, 4)
    np.testing.assert_array_equal(outputs.features["0.logits"], logits[0])
    peer, _ = networks.with_logits(network, "1.logits").apply(variables, IMAGES)
    np.testing.assert_array_equal(peer.logits, logits[1])


def test_a_class_that_no_member_may_choose_leaves_an_ensemble_trainable():
    network = networks.ensemble([models.mlp(6, (5,), 3), models.mlp(6, (4,), 3)])
    variables = jax.jit(network.init)(jax.random.key(0))
    params = variables["params"]

    def chosen(params):
        outputs, _ = network.apply({**variables, "params": params}, IMAGES)
        return outputs.logits[:, 0].sum()

    for part in params.values():
        part["head"]["bias"] = part["head"]["bias"].at[2].set(-jnp.inf)
    value, slopes = jax.jit(jax.value_and_grad(chosen))(params)
    assert np.isfinite(value)
    for part in slopes.values():
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(part))
        assert part["head"]["bias"][2] == 0
        assert part["head"]["bias"][0] != 0


def test_ensemble_refuses_nonsense(unchecked_shapes):
    with pytest.raises(ValueError, match="empty"):
        networks.ensemble([])
    with pytest.raises(ValueError, match="did you mean 'logits'"):
        networks.ensemble([models.mlp()], "logit")
    odd = networks.ensemble([models.mlp(6, (5,), 3), models.mlp(6, (5,), 4)])
    with pytest.raises(ValueError, match="same classes"):
        odd.apply(odd.init(jax.random.key(0)), IMAGES)


@pytest.mark.slow
def test_zoo_by_name_and_its_shapes():
    with pytest.raises(ValueError, match="unknown model 'cnnn': did you mean 'cnn'"):
        models.create("cnnn")
    for name in ("mlp", "cnn", "one_cnn"):
        network = models.create(name)
        variables = jax.jit(network.init)(jax.random.key(0))
        forward = jax.jit(partial(network.apply, taps=network.taps))
        outputs, _ = forward(variables, jnp.zeros((2, 8, 8, 1)))
        assert outputs.logits.shape == (2, 10)
        assert set(outputs.features) == set(network.taps)


def test_zoo_refuses_inputs_of_the_wrong_shape(unchecked_shapes):
    network = models.mlp(64, (5,), 3)
    with pytest.raises(ValueError, match="built for 64"):
        network.apply(jax.jit(network.init)(jax.random.key(0)), IMAGES)
    network = models.cnn(3)
    with pytest.raises(ValueError, match=r"height, width, 3\): build it"):
        network.apply(jax.jit(network.init)(jax.random.key(0)), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="at least 2 stages and 2 branches"):
        models.one_cnn(branches=1)
