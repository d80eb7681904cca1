"""SwiftKV's model against the authors' code, and its two-stage inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny import call

from jaxkd import papers
from jaxkd.generation import GREEDY, generate
from jaxkd.models import create, llama, mlp
from jaxkd.models.language.llama_config import AttentionKind
from jaxkd.network import Network
from jaxkd.networks.freezing import train_only
from jaxkd.papers.swiftkv import swiftkv as swiftkv_method
from jaxkd.papers.swiftkv.conversion import (
    TRAINED,
    decode_flops,
    kv_cache_bytes,
    layer_input_similarity,
    prefill_flops,
    shared_weights,
    swiftkv,
)
from jaxkd.training.costs import program_costs

SIZES = {"width": 16, "layers": 4, "heads": 4, "hidden": 24, "kv_heads": 2}
GROUPS = {"m1": 1, "m2": 2}
THEIRS = {
    "attention.query.kernel": "q_proj",
    "attention.key.kernel": "k_proj",
    "attention.value.kernel": "v_proj",
    "attention.out.kernel": "o_proj",
    "mlp.gate.kernel": "gate_proj",
    "mlp.up.kernel": "up_proj",
    "mlp.down.kernel": "down_proj",
    "attention_norm.scale": "input_layernorm",
    "mlp_norm.scale": "post_attention_layernorm",
}
"""Our weight of a layer -> the authors'."""


def weights(golden, case, prefix="w"):
    """Return the weights of a golden case by the authors' names, inputs first."""
    start = f"{case}/{prefix}/"
    found = {k.removeprefix(start): v for k, v in golden.items() if k.startswith(start)}
    return {
        k: v.T if v.ndim == 2 and k != "embed_tokens" else v for k, v in found.items()
    }


def teacher_params(golden, case):
    theirs = weights(golden, case)
    blocks = {
        tuple(ours.split(".")): np.stack([theirs[f"L{i}.{name}"] for i in range(4)])
        for ours, name in THEIRS.items()
    }
    return {
        "embed": {"embedding": theirs["embed_tokens"]},
        "head": {"kernel": theirs["lm_head"]},
        "norm": {"scale": theirs["norm"]},
        "blocks": unflatten_dict(blocks),
    }


def trained_weights(theirs, group):
    """Return what SwiftKV trains, in our tree, from the authors' names."""
    owners = range(2, 4, group)
    return {
        "shared_norm": {"scale": theirs["norm_swiftkv"]},
        "shared": {
            ours: {"kernel": np.stack([theirs[f"L{i}.{name}_swiftkv"] for i in owners])}
            for ours, name in (("key", "k_proj"), ("value", "v_proj"))
        },
        "late": {
            "attention": {
                "query": {
                    "kernel": np.stack([theirs[f"L{i}.q_proj_swiftkv"] for i in (2, 3)])
                }
            }
        },
    }


def joined(params, trained):
    return unflatten_dict(flatten_dict(params) | flatten_dict(trained))


def networks(group):
    teacher = llama(29, **SIZES, epsilon=1e-5)
    return teacher, swiftkv(teacher, 2, group)


@pytest.mark.parametrize("case", ["m1", "m2"])
def test_it_starts_where_the_authors_start(load_golden, case):
    golden = load_golden("01-swiftkv")
    start = weights(golden, case, "init" if case == "m2" else "w")
    found = flatten_dict(shared_weights(teacher_params(golden, case), 2, GROUPS[case]))
    for path, expected in flatten_dict(trained_weights(start, GROUPS[case])).items():
        np.testing.assert_allclose(found[path], expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["m1", "m2"])
def test_logits_losses_and_gradients_are_the_authors(load_golden, case):
    # The authors' norms and rotations are float32 in their float64 run too.
    golden = load_golden("01-swiftkv")
    group = GROUPS[case]
    teacher, student = networks(group)
    base = teacher_params(golden, case)
    params = joined(
        shared_weights(base, 2, group), trained_weights(weights(golden, case), group)
    )
    base, params = jax.tree.map(jnp.asarray, (base, params))
    ids, mask = (
        jnp.asarray(golden[f"{case}/{name}"]) for name in ("input_ids", "mask")
    )
    method = swiftkv_method("block2", divisor="positions")

    def run(params, base):
        inputs = {"input_ids": ids}
        outputs, taught = (
            network.apply({"params": p, "stats": {}}, inputs, taps=method.student_taps)[
                0
            ]
            for network, p in ((student, params), (teacher, base))
        )
        variables = {"params": {}, "state": {}}
        batch = {"mask": mask}
        value, (_, metrics) = call(method, variables, outputs, taught, batch)
        return value, (outputs, taught, metrics)

    (total, (outputs, taught, metrics)), gradients = jax.jit(
        jax.value_and_grad(run, has_aux=True)
    )(params, base)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for name, found in (("teacher", taught), ("student", outputs)):
        np.testing.assert_allclose(
            found.logits, golden[f"{case}/{name}_logits"], **close
        )
        states = found.features["block2"]
        np.testing.assert_allclose(states, golden[f"{case}/{name}_hidden_m2"], **close)
    close = {"rtol": 1e-5}
    np.testing.assert_allclose(total, golden[f"{case}/total"], **close)
    kl, hidden = metrics["swiftkv_kl"], metrics["swiftkv_hidden"]
    np.testing.assert_allclose(kl, golden[f"{case}/logits_loss"], **close)
    np.testing.assert_allclose(hidden, golden[f"{case}/hidden_loss"], **close)
    expected = flatten_dict(trained_weights(weights(golden, case, "g"), group))
    found = flatten_dict(gradients)
    for path, gradient in expected.items():
        tolerance = 1e-5 * np.abs(gradient).max()
        np.testing.assert_allclose(found[path], gradient, atol=tolerance)


IDS = jax.random.randint(jax.random.key(1), (2, 12), 1, 29)


@pytest.fixture(scope="module")
def teacher_variables():
    start = jax.jit(networks(1)[0].init)(jax.random.key(0))
    return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, start)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2])
def test_prompts_that_stop_half_way_give_the_training_forwards_logits(
    teacher_variables, group
):
    teacher, _ = networks(group)
    student = swiftkv(teacher.with_variables(teacher_variables), 2, group)
    variables = student.init(jax.random.key(0))
    forward = jax.jit(lambda v, x: student.apply(v, x, taps=("cache", "block3"))[0])
    whole = jax.jit(lambda v, x: student.apply(v, x)[0].logits)
    expected = whole(variables, {"input_ids": IDS})

    last = {"logits_to_keep": jnp.array([11])}
    outputs = forward(variables, {"input_ids": IDS, **last})
    assert outputs.features["block3"].shape == (2, 1, 16)
    np.testing.assert_allclose(outputs.logits[:, 0], expected[:, 11], atol=1e-5)

    none = {"logits_to_keep": jnp.zeros(0, int)}
    first = forward(variables, {"input_ids": IDS[:, :5], **none})
    assert first.logits.shape == (2, 0, 29)
    cache = first.features["cache"].grown(7)
    second = forward(variables, {"input_ids": IDS[:, 5:9], "cache": cache, **none})
    inputs = {"input_ids": IDS[:, 9:], "cache": second.features["cache"]}
    third = forward(variables, {**inputs, "logits_to_keep": jnp.array([2])})
    np.testing.assert_allclose(third.logits[:, 0], expected[:, 11], atol=1e-5)
    every = forward(variables, inputs)
    np.testing.assert_allclose(every.logits, expected[:, 9:], atol=1e-5)
    assert third.features["cache"].key.shape == (2 + 2 // group, 2, 2, 12, 4)

    made = generate(
        *(student, variables, {"input_ids": IDS}), max_new_tokens=4, sampling=GREEDY
    )
    ids = jnp.concatenate([IDS, made.tokens], axis=1)
    logits = whole(variables, {"input_ids": ids})
    np.testing.assert_array_equal(made.tokens, logits[:, 11:15].argmax(-1))


@pytest.mark.slow
def test_a_prompts_tokens_really_skip_the_later_layers(teacher_variables):
    def flops(network):
        def read(variables, ids):
            inputs = {"input_ids": ids, "logits_to_keep": jnp.array([255])}
            outputs, _ = network.apply(variables, inputs, taps=("cache",))
            return outputs.logits, outputs.features["cache"]

        variables = jax.eval_shape(network.init, jax.random.key(0))
        ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)
        compiled = jax.jit(read).lower(variables, ids).compile()
        return program_costs(compiled.as_text()).flops

    sizes = {"width": 64, "layers": 4, "heads": 4, "hidden": 192, "kv_heads": 2}
    teacher = llama(29, **sizes, implementation="reference")
    for network in (teacher, swiftkv(teacher, 2), swiftkv(teacher, 2, 2)):
        counted = prefill_flops(network, 256, last_only=network is not teacher)
        # The reference computes the whole square, and the head is one row.
        square = 4 * 64 * 256 * 256 * (4 if network is teacher else 2)
        late = 0 if network is teacher else 2 * 4 * 64 * 256
        expected = sum(counted.values()) - counted["attention"] + square + late
        assert flops(network) == pytest.approx(expected + 2 * 64 * 29, rel=1e-3)


def test_the_papers_savings_at_its_shapes():
    shapes = {"heads": 32, "kv_heads": 8, "width": 4096, "layers": 32, "hidden": 14336}
    big = {"heads": 64, "kv_heads": 8, "width": 8192, "layers": 80, "hidden": 28672}

    def saved(sizes, kv_layers, group):
        # Only shapes are read, and tokens enough that the last one's way is nothing.
        teacher = llama(128, **sizes)
        student = swiftkv(teacher, kv_layers, group)
        parts = ("key_value", "query_out", "mlp")
        full, left = (
            sum(prefill_flops(n, 10**6, last_only=n is student)[p] for p in parts)
            for n in (teacher, student)
        )
        memory = kv_cache_bytes(student, 1), kv_cache_bytes(teacher, 1)
        return 1 - left / full, *memory

    assert saved(shapes, 16, 1) == (pytest.approx(0.481, abs=1e-3), 131072, 131072)
    assert saved(shapes, 16, 4) == (pytest.approx(0.495, abs=1e-3), 81920, 131072)
    assert saved(big, 40, 1)[0] == pytest.approx(0.490, abs=1e-3)
    assert saved(big, 60, 1)[0] == pytest.approx(0.245, abs=1e-3)
    student = swiftkv(llama(128, **shapes), 16, 2)
    eighth = kv_cache_bytes(student, 1, jnp.float8_e4m3fn)
    assert eighth / 131072 == 1 - 0.625


def test_decoding_costs_what_a_token_of_context_does():
    teacher = llama(29, **SIZES)
    student = swiftkv(teacher, 2, 2)
    full, left = decode_flops(teacher, 100), decode_flops(student, 100)
    assert full["attention"] == 4 * 16 * 4 * 100
    assert full["head"] == 2 * 16 * 29
    assert full["key_value"] - left["key_value"] == 4 * 16 * 8
    assert full["mlp"] == left["mlp"] == 4 * 6 * 16 * 24


def test_only_what_is_named_is_trained(teacher_variables):
    teacher = networks(1)[0].with_variables(teacher_variables)
    student = train_only(swiftkv(teacher, 2, 2), TRAINED)
    variables = student.init(jax.random.key(0))
    names = {".".join(path) for path in flatten_dict(variables["params"])}
    assert names == {
        "shared_norm.scale",
        "shared.key.kernel",
        "shared.value.kernel",
        "late.attention.query.kernel",
    }


@pytest.mark.slow
def test_norms_and_biases_of_qwen_are_carried_over():
    teacher = llama(29, **SIZES, qkv_bias=True, qk_norm=True, tied=True)
    student = swiftkv(teacher, 2)
    variables = jax.jit(student.init)(jax.random.key(0))
    assert variables["params"]["shared"]["key_norm"]["scale"].shape == (2, 4)
    assert variables["params"]["shared"]["value"]["bias"].shape == (2, 8)
    trained = jax.eval_shape(train_only(student, TRAINED).init, jax.random.key(0))
    assert set(trained["params"]["shared"]) == {"key", "value", "key_norm"}
    assert set(trained["params"]["late"]["attention"]) == {"query", "query_norm"}
    logits = student.apply(variables, {"input_ids": IDS})[0].logits
    assert logits.shape == (2, 12, 29)


def test_it_is_built_again_from_its_record():
    student = networks(1)[1]
    name, arguments = student.spec
    again = create(name, papers.constructors(Network), **arguments)
    shapes = jax.eval_shape(student.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(
        jax.eval_shape(again.init, jax.random.key(0))
    )


def test_inputs_of_layers_that_are_alike():
    ones = jnp.ones((2, 3, 4))
    found = layer_input_similarity(jnp.stack([ones, 2 * ones, -ones, 0 * ones]))
    expected = [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kv_layers", "group", "message"),
    [
        (0, 1, "kv_layers must be from 1 to 3, got 0"),
        (4, 1, "kv_layers must be from 1 to 3, got 4"),
        (1, 2, "group must divide the 3 layers after the first 1, got 2"),
        (2, 0, "group must divide the 2 layers"),
    ],
)
def test_layers_that_do_not_fit_are_refused(kv_layers, group, message):
    with pytest.raises(ValueError, match=message):
        swiftkv(networks(1)[0], kv_layers, group)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"SwiftKV rewires .* got 'mlp'"):
        swiftkv(mlp(4), 1)
    with pytest.raises(ValueError, match="network must be llama or swiftkv_llama"):
        kv_cache_bytes(mlp(4), 1)
    for beyond in ({"attention": [AttentionKind(3), AttentionKind()]}, {"sinks": True}):
        with pytest.raises(ValueError, match="SwiftKV rewires Llama, Mistral and Qwen"):
            swiftkv(llama(29, **SIZES, **beyond), 1)
