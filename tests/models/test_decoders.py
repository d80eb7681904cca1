"""Decoders beyond Llama: caches, precision, meshes, and layers of two kinds."""

import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.interop import load_pretrained, save_pretrained
from jaxkd.models import llama
from jaxkd.models.language.llama_config import (
    AttentionKind,
    Config,
    Multipliers,
    SoftCaps,
)
from jaxkd.models.language.rope import LinearScaling, Rope, YarnScaling, frequencies
from jaxkd.training import MeshShape, make_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
NAMES = [
    *("gemma2", "gemma3", "granite", "mistral_window", "olmo2", "phi3", "smollm3"),
]
SMALL = {"vocabulary": 17, "width": 16, "layers": 3, "heads": 4, "hidden": 24}
NEAR, FAR = AttentionKind(3, Rope(100.0)), AttentionKind(None, None)
IDS = jax.random.randint(jax.random.key(1), (4, 8), 0, 17)


@functools.cache
def golden(name):
    """Return network and weights, and a sequence without padding and its logits."""
    expected = np.load(GOLDEN / name / "io.npz")
    ids, logits = (expected[key][:1] for key in ("input_ids", "logits"))
    return *load_pretrained(GOLDEN / name), ids, logits


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_steps_give_the_logits_of_the_whole(name):
    network, variables, ids, expected = golden(name)
    forward = jax.jit(lambda v, x: network.apply(v, x, taps=("cache",))[0])
    outputs = forward(variables, {"input_ids": ids[:, :5]})
    cache, found = outputs.features["cache"].grown(7), [outputs.logits]
    for start, stop in ((5, 10), (10, 11), (11, 12)):
        outputs = forward(variables, {"input_ids": ids[:, start:stop], "cache": cache})
        cache = outputs.features["cache"]
        found.append(outputs.logits)
    found = np.concatenate(found, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16_the_logits_are_close(name):
    network, variables, ids, expected = golden(name)
    network = network.computing_in(jnp.bfloat16)
    found = jax.jit(lambda v, x: network.apply(v, {"input_ids": x})[0].logits)(
        variables, ids
    )
    assert found.dtype == jnp.bfloat16
    error = np.abs(found.astype(float) - expected)
    assert error.mean() < 0.02 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_on_a_mesh_the_logits_are_the_same(name):
    _, _, ids, expected = golden(name)
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2))
    network, variables = load_pretrained(GOLDEN / name, mesh=mesh)
    places = variables["params"]["blocks"]["mlp"]["up"]["kernel"].sharding.spec
    assert places == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    with jax.set_mesh(mesh):
        run = jax.jit(lambda v, x: network.apply(v, {"input_ids": x})[0].logits)
        found = run(variables, ids.repeat(4, axis=0))
    for row in found:
        np.testing.assert_allclose(row, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": True}])
def test_layers_of_two_kinds_are_one_loop_or_none(changes):
    how = {"attention": (NEAR, FAR), "sinks": True, "soft_caps": SoftCaps(2.0, 3.0)}
    variables = llama(**SMALL, **how).init(jax.random.key(0))

    def gradient(**changes):
        apply = llama(**SMALL, **how, **changes).apply
        loss = lambda v: apply(v, {"input_ids": IDS})[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    plain, other = gradient(), gradient(**changes)
    chex.assert_trees_all_close(plain, other, rtol=1e-6, atol=1e-6)
    sinks = plain["params"]["blocks"]["attention"]["sinks"]
    assert sinks.shape == (3, 4)
    assert (np.abs(sinks) > 0).all()


@pytest.mark.slow
def test_sinks_are_split_as_heads_are():
    network = llama(**SMALL, sinks=True, attention=(NEAR, FAR))
    variables = network.init(jax.random.key(0))
    assert network.axes["blocks", "attention", "sinks"] == ("heads",)

    def gradient(v):
        loss = lambda v: network.apply(v, {"input_ids": IDS})[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(v)

    plain = gradient(variables)
    with jax.set_mesh(make_mesh(MeshShape(fsdp=2, tensor=2))):
        chex.assert_trees_all_close(gradient(variables), plain, rtol=1e-4, atol=1e-7)


def test_kinds_repeat_and_come_back_from_json():
    network = llama(
        **SMALL, attention=(NEAR, FAR), multipliers=Multipliers(2.0), norms="after"
    )
    config = Config.of(**network.spec[1])
    assert config.attention == (NEAR, FAR, NEAR)
    assert config.windows == (3, None)
    given = json.loads(json.dumps(network.spec[1], default=lambda record: vars(record)))
    assert Config.of(**given) == config
    yarn = {"rope_scaling": {"factor": 2.0, "original_length": 8, "truncate": True}}
    again = Config.of(**llama(**SMALL, **yarn).spec[1])
    assert again.attention[0].rope == Rope(10_000.0, YarnScaling(2.0, 8))


@pytest.mark.slow
def test_a_decoder_that_transformers_lacks_has_the_librarys_format(tmp_path):
    network = llama(**SMALL, attention=(NEAR, FAR), norms="after", sinks=True)
    variables = network.init(jax.random.key(0))
    save_pretrained(tmp_path, network, variables)
    assert json.loads((tmp_path / "config.json").read_text())["library"] == "jaxkd"
    again, found = load_pretrained(tmp_path)
    chex.assert_trees_all_equal(found, variables)
    logits = [
        net.apply(found, {"input_ids": IDS})[0].logits for net in (network, again)
    ]
    np.testing.assert_array_equal(*logits)


def test_capped_logits_have_no_head():
    """Their product of it with ``final`` would not be the logits."""
    assert "head" in llama(**SMALL, soft_caps=SoftCaps(scores=2.0)).taps
    assert "head" not in llama(**SMALL, soft_caps=SoftCaps(logits=2.0)).taps


def test_yarn_keeps_fast_pairs_and_slows_slow_ones():
    """By the paper's ramp over turns in the context, and gpt-oss's without rounding."""
    plain = frequencies(64, 10_000.0)
    scaling = YarnScaling(4.0, 4096, truncate=False)
    found = frequencies(64, 10_000.0, scaling)
    turns = 4096 * plain.astype(np.float64) / (2 * np.pi)
    slow = np.log(32 / turns) / np.log(32)
    expected = plain * (1 - 0.75 * np.clip(slow, 0, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    rounded = frequencies(64, 10_000.0, YarnScaling(4.0, 4096))
    assert 0 < np.abs(rounded / found - 1).max() < 0.1
    assert Rope(10_000.0, scaling).magnitude == pytest.approx(0.1 * np.log(4) + 1)
    np.testing.assert_allclose(
        frequencies(64, 10_000.0, LinearScaling(8.0)), plain / 8, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": ()}, "attention has 0 kinds for 3 layers"),
        ({"attention": 4 * [NEAR]}, "attention has 4 kinds for 3 layers"),
        ({"attention": [{"windows": 3}]}, r"fields of 0 of AttentionKind\(window,"),
        ({"rope_scaling": {"original_length": 8}}, "fields of 2 of RopeScaling"),
        ({"norms": "none"}, "unknown norms 'none'"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"multipliers": {"logit": 2.0}}, "fields of 0 of Multipliers"),
    ],
)
def test_options_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        llama(**SMALL, **changes)
