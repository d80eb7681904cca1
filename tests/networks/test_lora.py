"""Low-rank adapters: they alone learn, merged or kept, in every kind of layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import PartitionSpec as P

from jaxkd import Network, distill
from jaxkd.compression.quantise.mixed_bits import quantized
from jaxkd.generation import GREEDY, generate
from jaxkd.kernels.quant_matmul import QuantizedWeights
from jaxkd.methods import cross_entropy
from jaxkd.models import cnn, llama
from jaxkd.models.parts.adapted import plain_weights
from jaxkd.networks import LoraConfig, merged, with_lora
from jaxkd.networks.freezing import FROZEN, all_weights, frozen_weights
from jaxkd.networks.lora import with_adapters
from jaxkd.programs import with_average
from jaxkd.sharding.mesh import make_mesh, state_sharding
from jaxkd.training import Checkpoints, decay_mask, fit

KEY = jax.random.key(0)
LLAMA = llama(17, width=16, layers=2, heads=4, hidden=24, kv_heads=2)
TEXT = {
    "input_ids": jax.random.randint(jax.random.key(1), (4, 7), 0, 17),
    "label": jax.random.randint(jax.random.key(2), (4, 7), 0, 17),
}
IMAGES = {"image": jax.random.normal(jax.random.key(1), (4, 8, 8, 1))}
TWO = LoraConfig(rank=4, targets=r"blocks\.(attention\.query|mlp\.down)\.kernel")


class Dense(linen.Module):
    @linen.compact
    def __call__(self, image):
        return linen.Dense(3)(image.reshape(len(image), -1))


def user_model(rngs):
    layers = (nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.Linear(4, 3, rngs=rngs))
    return nnx.Sequential(layers[0], lambda x: x.mean((1, 2)), layers[1])


def trained(network, key=KEY):
    """Variables as after training: the adapters are random numbers."""
    variables = network.init(key)
    leaves, structure = jax.tree.flatten(variables["params"])
    keys = jax.random.split(key, len(leaves))
    drawn = [
        x + jax.random.uniform(k, x.shape) for x, k in zip(leaves, keys, strict=True)
    ]
    return {**variables, "params": jax.tree.unflatten(structure, drawn)}


CASES = {
    "lora": (LLAMA, TEXT, LoraConfig(rank=3, alpha=6)),
    "rslora": (LLAMA, TEXT, LoraConfig(rank=4, rank_stabilised=True)),
    "dora by layer": (
        LLAMA,
        TEXT,
        LoraConfig(
            rank=4,
            ranks={r".*query\.kernel": (2, 4), r".*down\.kernel": (3, 0)},
            alphas={r".*down\.kernel": (1.5, 3)},
            dora=True,
        ),
    ),
    "mixed": (LLAMA, TEXT, LoraConfig(rank=2, adapters=3)),
    "head": (LLAMA, TEXT, LoraConfig(rank=2, targets=r"head\.kernel", dora=True)),
    "cnn": (cnn(1, (4,), 3), IMAGES, LoraConfig(rank=2, targets=r".*\.kernel")),
    "yours": (
        Network.from_nnx(user_model),
        IMAGES,
        LoraConfig(rank=1, targets=r".*kernel", dora=True),
    ),
    "linen": (
        Network.from_linen(Dense(), IMAGES["image"]),
        IMAGES,
        LoraConfig(rank=2, targets=r"Dense_0\.kernel"),
    ),
}


FAST = ("linen",)


@pytest.mark.parametrize(
    "case", [pytest.param(x, marks=[pytest.mark.slow] * (x not in FAST)) for x in CASES]
)
def test_kept_and_merged_are_one_network(case):
    base, batch, config = CASES[case]
    network = with_lora(base, config)
    inputs = network.read(batch)
    run = jax.jit(lambda v: network.apply(v, inputs)[0].logits)
    plain = jax.jit(lambda v: base.apply(v, inputs)[0].logits)
    # B is 0: nothing has changed yet.
    start = plain(base.init(KEY))
    np.testing.assert_allclose(run(network.init(KEY)), start, rtol=1e-5, atol=1e-6)
    variables = trained(network)
    inner, weights = merged(network, variables)
    assert inner is base
    kept = run(variables)
    assert np.abs(kept - start).max() > 0.1
    np.testing.assert_allclose(plain(weights), kept, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_summed_weight():
    network = with_lora(LLAMA, TWO)
    variables = trained(network)
    stats = variables["stats"]

    def loss(params, whole):
        own = {"params": params, "stats": stats}
        run = merged(network, own) if whole else (network, own)
        return jnp.square(run[0].apply(run[1], TEXT)[0].logits).mean()

    kept, summed = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], whole)
        for whole in (False, True)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        kept,
        summed,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Whole runs of bf16 weights with adapters: at once, and resumed; checkpoints."""
    base = LLAMA.computing_in(jnp.bfloat16)
    network = with_lora(base.with_variables(LLAMA.init(KEY)), TWO)
    adamw = optax.adamw(0.1, mask=decay_mask)
    program = with_average(
        distill(network, None, cross_entropy(), adamw, accumulate=2), 0.5
    )
    data = [TEXT] * 3
    folder = tmp_path_factory.mktemp("lora")
    whole = fit(program, data, key=KEY)
    with Checkpoints(folder) as checkpoints:
        fit(program, data, key=KEY, steps=2, checkpoints=checkpoints)
        again = fit(program, data, key=KEY, checkpoints=checkpoints)
    return network, program, whole, again, folder


@pytest.mark.slow
def test_adapters_learn_and_nothing_else(runs):
    _, _, (state, _), _, _ = runs
    inner = state.program
    before = LLAMA.init(KEY)
    for a, b in zip(
        frozen_weights(inner.student), jax.tree.leaves(before["params"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    shapes = {x.shape for x in jax.tree.leaves(inner.student["params"])}
    moments = {x.shape for x in jax.tree.leaves(inner.opt_state) if x.ndim}
    assert moments == shapes == {(2, 16, 4), (2, 4, 16), (2, 24, 4)}
    assert all(x.any() for x in jax.tree.leaves(inner.student["params"]))


@pytest.mark.slow
def test_averages_and_checkpoints_leave_the_base_out(runs):
    _, _, (whole, _), (again, _), folder = runs
    jax.tree.map(np.testing.assert_array_equal, again.average, whole.average)
    held = sum(x.size for x in jax.tree.leaves(whole.moving))
    assert held == sum(x.size for x in jax.tree.leaves(whole.program.student["params"]))
    assert whole.average.keys() == whole.program.student.keys()
    # The same base is needed to go on.
    other = with_lora(LLAMA.with_variables(LLAMA.init(jax.random.key(1))), TWO)
    other = with_average(distill(other, None, cross_entropy(), optax.sgd(0.1)), 0.5)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match=r"fingerprint of .*frozen weights.* was '"),
    ):
        fit(other, [TEXT] * 4, key=KEY, checkpoints=checkpoints)


def test_adapters_lie_on_a_mesh_as_their_weights():
    network = with_lora(LLAMA, LoraConfig(rank=4, dora=True))
    shapes, mesh = jax.eval_shape(network.init, KEY), make_mesh("fsdp")
    placed = state_sharding(shapes, mesh, network.axes, min_size=1)["params"]["lora"]
    down, up = (placed["blocks"]["mlp"][name]["kernel"] for name in ("down", "up"))
    assert up["a"].spec == P(None, "fsdp", None)
    assert up["b"].spec == down["a"].spec == P(None, None, None)
    assert down["b"].spec == P(None, None, "fsdp")
    assert down["magnitude"].spec == P(None, "fsdp")


@pytest.mark.slow
def test_dropout_is_of_training_alone():
    network = with_lora(LLAMA, LoraConfig(rank=4, dropout=0.5))
    variables = trained(network)

    def run(key, train):
        return network.apply(variables, TEXT, train=train, key=key)[0].logits

    run = jax.jit(run, static_argnums=1)
    first, other = (run(jax.random.key(i), True) for i in range(2))
    assert (first != other).any()
    np.testing.assert_array_equal(run(KEY, False), run(jax.random.key(1), False))
    with pytest.raises(ValueError, match="key is None, but adapters' dropout"):
        network.apply(variables, TEXT, train=True)


@pytest.mark.slow
def test_gates_may_be_inputs():
    network = with_lora(LLAMA, LoraConfig(rank=2, adapters=3))
    variables = trained(network)
    run = jax.jit(lambda gates: network.apply(variables, gates)[0].logits)
    given = run({**TEXT, "gates": jnp.array([0.0, 1.0, 0.0])})
    one = jax.tree.map(lambda x: x[1], variables["params"]["lora"])
    one.pop("gates")
    alone = with_lora(LLAMA, LoraConfig(rank=2))
    found = alone.apply({**variables, "params": {"lora": one}}, TEXT)[0].logits
    np.testing.assert_allclose(given, found, rtol=1e-4, atol=1e-5)
    assert (run(dict(TEXT)) != given).any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"targets": "("}, r"targets '\(' is no regular expression: missing"),
        ({"ranks": {"(": 2}}, r"ranks '\(' is no regular expression: missing"),
        ({"targets": r"blocks\.query"}, r"'blocks\\\\.query' matches none of the"),
        ({"targets": r"norm\.scale"}, r"norm.scale of shape \(16,\), which is no mat"),
        (
            {"ranks": {r".*kernel": (1, 2, 3)}},
            r"\(1, 2, 3\) is of \(3,\) layers, but b",
        ),
        ({"alphas": {r"mlp": 3}}, r"the pattern 'mlp' of ranks or alphas matches"),
        ({"rank": 17}, r"key.kernel is 16 by 8, and an adapter of rank 17 is no sm"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"dropout": 0.1, "targets": r"embed\.embedding"}, "dropout is 0.1, but embed"),
    ],
)
def test_what_cannot_be_adapted_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        with_lora(LLAMA, LoraConfig(**config))


def test_a_network_without_adapters_is_not_merged():
    with pytest.raises(ValueError, match="network has no adapters: give the one that"):
        merged(LLAMA, {"params": {}, "stats": {}})
    with pytest.raises(ValueError, match="the network has adapters: give adapters="):
        with_lora(with_lora(LLAMA, TWO), TWO)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_adapters_learn_beside_quantised_weights(kind):
    rules = [(r"blocks\..*kernel", kind), (".*", None)]
    small = with_lora(quantized(LLAMA, rules, 8), TWO)
    variables = trained(small)
    plain = jax.tree.map(
        plain_weights, all_weights(variables)["params"], is_leaf=_is_quantised
    )
    plain.pop("lora")
    dense = with_adapters({"params": plain, "stats": {}}, variables["params"]["lora"])

    def loss(network, variables):
        def of(params):
            logits = network.apply({**variables, "params": params}, TEXT)[0].logits
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, TEXT["label"]
            ).mean()

        return jax.jit(jax.value_and_grad(of))(variables["params"])

    found, expected = loss(small, variables), loss(with_lora(LLAMA, TWO), dense)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    blocks = variables["stats"][FROZEN]["blocks"]["mlp"]["up"]["kernel"]
    assert blocks.codes.dtype == kind
    # They are frozen, so no dtype stands in the way of training.
    program = distill(small, None, cross_entropy(), optax.adam(0.1))
    (first,), (last,) = (fit(program, [TEXT] * n, key=KEY)[1] for n in (1, 8))
    assert last["train_loss"] < first["train_loss"] - 0.1


def _is_quantised(x):
    return isinstance(x, QuantizedWeights)


@pytest.mark.slow
def test_text_is_written_from_a_cache_as_by_the_merged_network():
    network = with_lora(LLAMA, LoraConfig(rank=4, dora=True))
    variables = trained(network)
    kept, plain = (
        generate(
            *run, {"input_ids": TEXT["input_ids"]}, max_new_tokens=5, sampling=GREEDY
        )
        for run in ((network, variables), merged(network, variables))
    )
    np.testing.assert_array_equal(kept.tokens, plain.tokens)
