"""Folders of trained networks: exact round trips, and an answer for every damage."""

import contextlib
import itertools
import json
import pathlib
import shutil

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from damage import damaged
from safetensors.numpy import load_file, save_file

from jaxkd import models, training
from jaxkd.digests import DIGESTS
from jaxkd.files import kept_aside
from jaxkd.interop import folders, shards
from jaxkd.models.language.rope import RopeScaling
from jaxkd.network import Network
from jaxkd.papers.swiftkv import swiftkv_llama

MODELS = {
    "cnn": ({"channels_in": 1, "channels": [3, 4], "classes": 5}, (8, 8, 1)),
    "mlp": ({"features": 6, "widths": [4], "classes": 3}, (6,)),
    "one_cnn": ({"channels": [2, 3], "branches": 2}, (8, 8, 1)),
}
LLAMA = {
    "vocabulary": 32,
    "width": 16,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "hidden": 24,
}


def trained(name):
    arguments, shape = MODELS[name]
    network = models.create(name, **arguments)
    variables = jax.jit(network.init)(jax.random.key(0))
    # Not what init gives, so that a load that only builds the model shows.
    return network, jax.tree.map(lambda x: x * 1.5 + 0.25, variables), shape


def saved(folder, name):
    network, variables, shape = trained(name)
    folders.save_pretrained(folder, network, variables, input_shape=shape)
    return network, variables, shape


@pytest.fixture(scope="module")
def decoder():
    network = models.llama(**LLAMA)
    return network, jax.jit(network.init)(jax.random.key(0))


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "new" / "mlp", "mlp")
    return tmp_path / "new" / "mlp"


@pytest.fixture
def checkpoint(tmp_path, decoder):
    """A decoder in Hugging Face's format, in several files."""
    return folders.save_pretrained(tmp_path / "llama", *decoder, max_shard_size=8000)


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.slow
def test_arguments_that_are_records_come_back(tmp_path):
    _, arguments = models.llama(**LLAMA, rope_scaling=RopeScaling(4.0)).spec
    network = swiftkv_llama(arguments, kv_layers=1, group=2)
    variables = jax.jit(network.init)(jax.random.key(0))
    folders.save_pretrained(tmp_path / "swift", network, variables)
    again, loaded = folders.load_pretrained(tmp_path / "swift")
    assert_identical(loaded, variables)
    ids = {"input_ids": jnp.arange(8)[None]}
    logits = [net.apply(variables, ids)[0].logits for net in (network, again)]
    np.testing.assert_array_equal(*logits)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_round_trip_is_bit_for_bit(tmp_path, name, dtype):
    network, variables, shape = trained(name)
    params = jax.tree.map(lambda x: x.astype(dtype), variables["params"])
    variables = {**variables, "params": params}
    folders.save_pretrained(tmp_path, network, variables, input_shape=shape)
    again, loaded = folders.load_pretrained(tmp_path)
    assert_identical(loaded, variables)
    assert again.taps == network.taps
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    np.testing.assert_array_equal(
        jax.jit(again.apply)(loaded, x)[0].logits,
        jax.jit(network.apply)(variables, x)[0].logits,
    )
    config = json.loads((tmp_path / folders.CONFIG).read_text())
    assert (config["model"], config["input_shape"]) == (name, list(shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_files_are_the_same_arrays_on_every_mesh(tmp_path, decoder, dtype):
    network, variables = decoder
    variables = jax.tree.map(lambda x: x.astype(dtype), variables)
    folders.save_pretrained(tmp_path, network, variables, max_shard_size=8000)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 1
    assert_identical(folders.load_pretrained(tmp_path)[1], variables)
    mesh = training.make_mesh(training.MeshShape(fsdp=2, tensor=2))
    _, spread = folders.load_pretrained(tmp_path, mesh=mesh)
    assert_identical(spread, variables)
    assert spread["params"]["embed"]["embedding"].sharding.mesh == mesh


@pytest.mark.slow
def test_large_arrays_are_read_in_the_parts_that_a_device_holds(tmp_path, monkeypatch):
    network = models.llama(**{**LLAMA, "width": 64, "hidden": 128})
    variables = jax.jit(network.init)(jax.random.key(0))
    folders.save_pretrained(tmp_path, network, variables)
    taken = []
    whole = shards.Shards.read

    def read(self, name, index=...):
        found = whole(self, name, index)
        taken.append((name, found.shape))
        return found

    monkeypatch.setattr(shards.Shards, "read", read)
    mesh = training.make_mesh(training.MeshShape(fsdp=2, tensor=2))
    _, spread = folders.load_pretrained(tmp_path, mesh=mesh)
    assert_identical(spread, variables)
    up = {shape for name, shape in taken if name.endswith("0.mlp.up_proj.weight")}
    assert up == {(64, 32)}


def test_a_dtype_and_arguments_replace_the_folders(checkpoint, decoder):
    network, variables = folders.load_pretrained(
        checkpoint, dtype=jnp.bfloat16, remat=True
    )
    assert network.spec is not None
    assert network.spec[1]["remat"]
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), decoder[1])
    assert_identical(variables, cast)
    with pytest.raises(ValueError, match="what was given make arguments that 'llama'"):
        folders.load_pretrained(checkpoint, rematerialise=True)


def test_what_the_network_does_not_own_goes_along(checkpoint, tmp_path):
    path = checkpoint / folders.CONFIG
    (checkpoint / "SHA256SUMS").unlink()  # As others write folders.
    config = json.loads(path.read_text())
    rope = {**config["rope_parameters"], "mine": 1}
    mine = {
        "max_position_embeddings": 77,
        "id2label": {"0": "a"},
        "rope_parameters": rope,
    }
    path.write_text(json.dumps({**config, **mine, "eos_token_id": 2}))
    side = '{"eos_token_id": 2, "top_p": 0.9}'
    (checkpoint / "generation_config.json").write_text(side)
    network, variables = folders.load_pretrained(
        checkpoint, rope_theta=5e5, dtype=jnp.bfloat16
    )
    to = folders.save_pretrained(tmp_path / "to", network, variables)
    changed = {"rope_parameters": {**rope, "rope_theta": 5e5}, "dtype": "bfloat16"}
    assert json.loads((to / folders.CONFIG).read_text()) == {
        **json.loads(path.read_text()),
        **changed,
    }
    assert (to / "generation_config.json").read_text() == side
    assert folders.load_pretrained(to)[0].spec == network.spec
    # A token that is given is the same one in both files.
    folders.save_pretrained(to, network, variables, config={"eos_token_id": 3})
    found = json.loads((to / "generation_config.json").read_text())
    assert found == {"eos_token_id": 3, "top_p": 0.9}


def test_saving_again_replaces_the_weights_and_nothing_else(checkpoint):
    (checkpoint / "notes.txt").write_text("mine")
    network, variables, _ = trained("mlp")
    folders.save_pretrained(checkpoint, network, variables)
    assert_identical(folders.load_pretrained(checkpoint)[1], variables)
    names = sorted(file.name for file in checkpoint.iterdir())
    assert names == [DIGESTS, folders.CONFIG, shards.WEIGHTS, "notes.txt"]
    assert sorted(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_save_that_is_cut_off_is_no_model(checkpoint, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    network, variables, _ = trained("mlp")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_shards", fail)
        with pytest.raises(OSError, match="the disk is full"):
            folders.save_pretrained(checkpoint, network, variables)
    assert before == {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    folders.save_pretrained(checkpoint, network, variables)
    assert_identical(folders.load_pretrained(checkpoint)[1], variables)


def test_a_stop_leaves_the_old_model_or_the_new_one(checkpoint, decoder, monkeypatch):
    (checkpoint / "notes.txt").write_text("mine")
    network, variables, shape = trained("mlp")
    rename, done = pathlib.Path.rename, []

    def stopping(number, kill):
        """Stop at one change of a name; at a kill no later one happens either."""
        count = itertools.count()

        def renamed(path, to):
            i = next(count)
            if i == number or (kill and i > number):
                raise KeyboardInterrupt
            return rename(path, to)

        return renamed

    for number, kill in itertools.product(range(4), (False, True)):
        folder = shutil.copytree(checkpoint, checkpoint.parent / f"{number}{kill}")
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, "rename", stopping(number, kill))
            with contextlib.suppress(KeyboardInterrupt):
                folders.save_pretrained(folder, network, variables, input_shape=shape)
                done.append(number)
        found = folder
        if not folder.exists():
            with pytest.raises(
                FileNotFoundError, match=r"Rename .*\.old, the model bef"
            ):
                folders.load_pretrained(folder)
            assert (number, kill) == (1, True)
            found = kept_aside(folder)
        loaded = folders.load_pretrained(found)[1]
        assert_identical(loaded, decoder[1] if number < 2 else variables)
        # The next save sets all of it right.
        folders.save_pretrained(folder, network, variables, input_shape=shape)
        assert_identical(folders.load_pretrained(folder)[1], variables)
        assert (folder / "notes.txt").read_text() == "mine"
        assert not kept_aside(folder).exists()
    assert done == [3, 3]


def test_no_damaged_folder_is_read(tmp_path):
    network, variables, _ = trained("mlp")
    folders.save_pretrained(tmp_path, network, variables, max_shard_size=60)
    assert (tmp_path / shards.INDEX).is_file()
    read = []
    for what in damaged(tmp_path):
        with contextlib.suppress(ValueError, FileNotFoundError):
            folders.load_pretrained(tmp_path)
            read.append(what)
    assert not read


def test_no_damaged_program_is_read(tmp_path):
    network, variables, shape = saved(tmp_path, "mlp")
    x = jnp.ones((2, *shape))
    with pytest.raises(FileNotFoundError, match="write it by export_program"):
        folders.load_program(tmp_path)
    path = folders.export_program(tmp_path)
    expected = jax.jit(network.apply)(variables, x)[0].logits
    np.testing.assert_allclose(
        folders.load_program(tmp_path).call(x), expected, rtol=1e-5
    )
    # The digests of the other files stayed.
    assert_identical(folders.load_pretrained(tmp_path)[1], variables)
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in (path, tmp_path / DIGESTS):
        shutil.copy(file, alone)
    read = []
    for what in damaged(alone):
        with contextlib.suppress(ValueError):
            folders.load_program(alone)
            read.append(what)
    assert not read


def test_a_change_of_the_users_own_is_told_how_to_be_read(folder):
    path = folder / folders.CONFIG
    path.write_text(path.read_text().replace("[\n    6", "[\n    7"))
    with pytest.raises(ValueError, match=r"config.json changed since .* SHA256SUMS"):
        folders.load_pretrained(folder)
    (folder / DIGESTS).unlink()
    folders.load_pretrained(folder)


def test_the_tokeniser_and_further_keys_go_along(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_text("not this")
    network, variables, _ = trained("mlp")
    to = folders.save_pretrained(
        tmp_path / "to",
        network,
        variables,
        tokenizer=source,
        config={"eos_token_id": 2},
    )
    names = sorted(file.name for file in to.iterdir())
    assert names == [DIGESTS, folders.CONFIG, shards.WEIGHTS, "tokenizer.json"]
    config = json.loads((to / folders.CONFIG).read_text())
    assert config["eos_token_id"] == 2
    again = folders.save_pretrained(
        tmp_path / "again", network, variables, tokenizer=to
    )
    assert json.loads((again / folders.CONFIG).read_text()) == config
    with pytest.raises(FileNotFoundError, match="holds no tokeniser, such as"):
        folders.save_pretrained(to, network, variables, tokenizer=tmp_path)


def rewritten(checkpoint, change):
    """Change the tensors of a single-file checkpoint."""
    path = checkpoint / shards.WEIGHTS
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: arrays.pop("model.layers.1.mlp.up_proj.weight"),
            r"lacks model.layers.1.mlp.up_proj.weight \(is config.json of these",
        ),
        (
            lambda arrays: arrays.update(more=np.zeros(2)),
            "has more for which the model has no place",
        ),
        (
            lambda arrays: arrays.update({"model.norm.weight": np.zeros(17)}),
            r"model.norm.weight has shape \(17,\), but the model has \(16,\) there",
        ),
        (
            lambda arrays: arrays.update({"lm_head.weight": np.zeros((16, 32))}),
            r"lm_head.weight has shape \(16, 32\), but the model has \(32, 16\)",
        ),
    ],
)
def test_tensors_that_are_not_the_models_are_named(tmp_path, decoder, change, message):
    folders.save_pretrained(tmp_path, *decoder)
    rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        folders.load_pretrained(tmp_path)


def test_many_missing_tensors_are_counted(checkpoint):
    path = checkpoint / folders.CONFIG
    path.write_text(path.read_text().replace('hidden_layers": 3', 'hidden_layers": 9'))
    with pytest.raises(ValueError, match=r"lacks model.layers.3\.\S+, .* and \d+ more"):
        folders.load_pretrained(checkpoint)


@pytest.mark.parametrize("name", [folders.CONFIG, shards.WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        folders.load_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", r"config.json cannot be read .*is no JSON .*: fetch or export"),
        ("[]", "config.json cannot be read"),
        ('{"model": "mlp"}', r"config.json cannot be read \(KeyError\('arguments'\)"),
        ('{"model_type": "bert"}', r"cannot be read \(KeyError\('architectures'\)"),
        ('{"architectures": []}', "cannot be read .*architectures is empty"),
        ('{"architectures": ["A"]}', r"cannot be read \(KeyError\('model_type'\)"),
        (
            '{"architectures": ["LlamaForCausalLMs"], "model_type": "llama"}',
            "unknown architecture 'LlamaForCausalLMs': did you mean 'LlamaForCaus",
        ),
        (
            '{"architectures": ["A"], "model_type": "a", "quantization_config": {"b":'
            " 4}}",
            "config.json is of quantised weights, which are not read",
        ),
        ({"model": "mpl"}, "unknown model 'mpl': did you mean 'mlp'"),
        ({"arguments": {"feature": 6}}, r"config.json .*'feature'.*: export the model"),
        ({"arguments": [6]}, "config.json cannot be read .*arguments is .* no dict"),
        (
            {"arguments": {"features": 6, "widths": [5], "classes": 3}},
            r"params/h\S+ has shape \(\S*, ?\S*\), but the model has",
        ),
        (
            {"arguments": {"features": 6, "widths": [4, 4], "classes": 3}},
            "lacks params/hidden/1/bias",
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
    network, variables, _ = trained("mlp")
    unnamed = Network(network.init, network.apply)
    with pytest.raises(ValueError, match="not made by a constructor of"):
        folders.save_pretrained(tmp_path / "a", unnamed, variables)
    other = models.mlp(6, classes=3)
    with pytest.raises(ValueError, match=r"variables: params/head/kernel has shape"):
        folders.save_pretrained(tmp_path / "a", other, variables)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_exported_program_equals_the_network_at_any_batch_size(tmp_path, name):
    network, variables, shape = saved(tmp_path, name)
    path = folders.export_program(tmp_path)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert {"cpu", "cuda", "tpu"} == set(program.platforms)
    for examples in (1, 5):
        x = jax.random.normal(jax.random.key(examples), (examples, *shape))
        found = program.call(x)
        assert found.dtype == jnp.float32
        expected = jax.jit(network.apply)(variables, x)[0].logits
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_program_needs_the_shape_of_an_example(tmp_path):
    network, variables, _ = trained("mlp")
    folders.save_pretrained(tmp_path, network, variables)
    with pytest.raises(ValueError, match="has no input_shape: save the network with"):
        folders.export_program(tmp_path)
