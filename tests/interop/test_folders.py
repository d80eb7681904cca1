"""Folders of trained networks: exact round trips, and an answer for every damage."""

import json
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.interop import folders

# Tiny programs run once: without LLVM's optimisation they compile five times faster.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MODELS = {
    "cnn": ({"channels_in": 1, "channels": [3, 4], "classes": 5}, (8, 8, 1)),
    "mlp": ({"features": 6, "widths": [4], "classes": 3}, (6,)),
    "one_cnn": ({"channels": [2, 3], "branches": 2}, (8, 8, 1)),
}


def trained(name):
    arguments, shape = MODELS[name]
    network = models.create(name, **arguments)
    variables = compiled(network.init)(jax.random.key(0))
    # Not what init gives, so that a load that only builds the model shows.
    return network, jax.tree.map(lambda x: x * 1.5 + 0.25, variables), shape


@pytest.fixture
def folder(tmp_path):
    _, variables, shape = trained("mlp")
    return folders.save_pretrained(
        tmp_path / "new" / "mlp", "mlp", MODELS["mlp"][0], variables, shape
    )


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_round_trip_is_bit_for_bit(tmp_path, name, dtype):
    network, variables, shape = trained(name)
    params = jax.tree.map(lambda x: x.astype(dtype), variables["params"])
    variables = {**variables, "params": params}
    folders.save_pretrained(tmp_path, name, MODELS[name][0], variables, shape)
    again, loaded = folders.load_pretrained(tmp_path)
    assert_identical(loaded, variables)
    assert again.taps == network.taps
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    np.testing.assert_array_equal(
        compiled(again.apply)(loaded, x)[0].logits,
        compiled(network.apply)(variables, x)[0].logits,
    )
    config = json.loads((tmp_path / folders.CONFIG).read_text())
    assert (config["model"], config["input_shape"]) == (name, list(shape))


def test_saving_again_replaces_the_weights(folder):
    _, variables, shape = trained("mlp")
    changed = jax.tree.map(lambda x: -x, variables)
    folders.save_pretrained(folder, "mlp", MODELS["mlp"][0], changed, shape)
    assert_identical(folders.load_pretrained(folder)[1], changed)


@pytest.mark.parametrize("name", [folders.CONFIG, folders.WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing: load_pretrained"):
        folders.load_pretrained(folder)


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 99],
    ids=["emptied", "truncated", "overwritten"],
)
def test_damaged_weights_are_named(folder, damage):
    path = folder / folders.WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"safetensors is damaged .*: export the mode"):
        folders.load_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", r"config.json cannot be read \(JSONDecodeError.*: export the model"),
        ("[]", "config.json cannot be read"),
        ('{"model": "mlp"}', r"config.json cannot be read \(KeyError\('arguments'\)"),
        ({"model": "mpl"}, "unknown model 'mpl': did you mean 'mlp'"),
        ({"arguments": {"feature": 6}}, r"config.json .*'feature'.*: export the model"),
        ({"arguments": [6]}, r"config.json .*: export the model"),
        (
            {"arguments": {"features": 6, "widths": [5], "classes": 3}},
            r"safetensors: params/h.* shape \(3,\)|safetensors: params/.* has shape",
        ),
        (
            {"arguments": {"features": 6, "widths": [4, 4], "classes": 3}},
            r"params/hidden/1/bias has shape None, but .*\(4,\) there",
        ),
    ],
)
def test_a_bad_config_is_answered(folder, change, message):
    path = folder / folders.CONFIG
    if isinstance(change, dict):
        change = json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(change)
    with pytest.raises(ValueError, match=message):
        folders.load_pretrained(folder)


def test_saving_refuses_what_could_not_be_loaded(tmp_path):
    _, variables, shape = trained("mlp")
    with pytest.raises(ValueError, match="unknown model 'mlpp'"):
        folders.save_pretrained(tmp_path / "a", "mlpp", {}, variables, shape)
    with pytest.raises(ValueError, match=r"variables: params/head/kernel has shape"):
        folders.save_pretrained(
            tmp_path / "a", "mlp", {"features": 6, "classes": 3}, variables, shape
        )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_exported_program_equals_the_network_at_any_batch_size(tmp_path, name):
    network, variables, shape = trained(name)
    folders.save_pretrained(tmp_path, name, MODELS[name][0], variables, shape)
    path = folders.export_program(tmp_path)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert {"cpu", "cuda", "tpu"} == set(program.platforms)
    for examples in (1, 5):
        x = jax.random.normal(jax.random.key(examples), (examples, *shape))
        found = program.call(x)
        assert found.dtype == jnp.float32
        expected = compiled(network.apply)(variables, x)[0].logits
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
