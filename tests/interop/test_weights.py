"""A student's weights in one file: as they were, and an answer for every damage."""

import contextlib
import json
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import damaged
from safetensors.numpy import save

import jaxkd
from jaxkd import models
from jaxkd.interop import save_pretrained
from jaxkd.interop.weights import STRUCTURE

TREE = {
    "params": {
        "layers": [{"kernel": jnp.ones((2, 3), jnp.bfloat16)} for _ in range(11)],
        "pair": (jnp.arange(3), jnp.zeros((0, 2), jnp.int8)),
        "a.b": jnp.asarray([True, False]),
    },
    "stats": {"empty": {}, "count": jnp.asarray(3), "mean": jnp.float16(0.5)},
}


def test_what_was_saved_is_loaded(tmp_path):
    path = jaxkd.save_weights(tmp_path / "new" / "x.safetensors", TREE)
    found = jaxkd.load_weights(path)
    assert jax.tree.structure(found) == jax.tree.structure(TREE)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(TREE), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
    number = jaxkd.load_weights(jaxkd.save_weights(path, 2.5))
    assert number == 2.5
    assert [file.name for file in path.parent.iterdir()] == ["x.safetensors"]


@pytest.mark.slow
def test_a_fresh_process_has_the_student_in_three_lines(tmp_path):
    student = models.cnn(1, (4, 6), 3)
    variables = student.init(jax.random.key(0))
    path = jaxkd.save_weights(tmp_path / "student.safetensors", variables)
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("f4")
    np.save(tmp_path / "image.npy", image)
    program = f"""
import jax, jaxkd, numpy as np
student = jaxkd.models.cnn(1, (4, 6), 3)
student = student.with_variables(jaxkd.load_weights({str(path)!r}))
variables = student.init(jax.random.key(9))
logits = student.apply(variables, np.load({str(tmp_path / "image.npy")!r}))[0].logits
np.save({str(tmp_path / "logits.npy")!r}, logits)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    expected = student.apply(variables, jnp.asarray(image))[0].logits
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b/c": 1.0}}, r"a has the key 'b/c': keys of weights are texts"),
        ({"..": 1.0}, r"variables has the key '\.\.'"),
        ({1: 1.0}, "has the key 1"),
        ({"a": [object()]}, "a/0 is a object"),
        ({"key": jax.random.key(0)}, "random keys save jax.random.key_data"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, tree, message):
    with pytest.raises(ValueError, match=message):
        jaxkd.save_weights(tmp_path / "x", tree)
    assert not list(tmp_path.iterdir())


def file_of(structure, **arrays):
    text = structure if isinstance(structure, str) else json.dumps(structure)
    return save(arrays, metadata={STRUCTURE: text})


ONE = np.ones(1, "f4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": ONE}), "is damaged"),
        (b"", "is damaged"),
        (save({"a": ONE})[:-1], "is damaged"),
        (b"\xff" * 8 + b"{}", "is damaged"),
        (save({"a": ONE}), "no structure of save_weights: .*load_pretrained"),
        (file_of("{", a=ONE), "is damaged"),
        (file_of("[" * 99_999, a=ONE), "is damaged"),
        (file_of(["dict", {"a": None, "b": None}], a=ONE), "other tensors than"),
        (file_of(["dict", {}], a=ONE), "other tensors than"),
        (file_of('["dict", {"a": null, "a": null}]', a=ONE), "not all different"),
        (file_of(["dict", {"..": None}], **{"..": ONE}), r"the key '\.\.'"),
        (
            file_of(["dict", {"../a": None}], **{"../a": ONE}),
            r"the key '\.\./a': keys of weights",
        ),
        (file_of(["set", [None]], a=ONE), "is no structure"),
        (file_of(["dict", {"a": 3}], a=ONE), "a: 3 is no structure"),
    ],
)
def test_damaged_and_hostile_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        jaxkd.load_weights(path)


def test_no_damaged_file_is_loaded(tmp_path):
    path = jaxkd.save_weights(tmp_path / "x.safetensors", TREE)
    read = []
    for what in damaged(tmp_path):
        with contextlib.suppress(ValueError):
            found = jaxkd.load_weights(path)
            read.append((what, found))
    # One that is not refused had its digest's name damaged, and nothing else.
    for what, found in read:
        assert jax.tree.structure(found) == jax.tree.structure(TREE), what
        jax.tree.map(np.testing.assert_array_equal, found, TREE)
    assert len(read) < 3


def test_a_missing_file_and_a_full_disk_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is missing"):
        jaxkd.load_weights(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"is a folder, .*load_pretrained"):
        jaxkd.load_weights(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        jaxkd.save_weights(tmp_path / "file" / "x", {"a": ONE})


def test_a_file_may_be_read_by_whom_other_new_files_may(tmp_path):
    (tmp_path / "other").touch()
    jaxkd.save_weights(tmp_path / "x.safetensors", {"params": {"a": jnp.ones(2)}})
    network = models.llama(8, 8, 1, 2, 8)
    save_pretrained(tmp_path / "folder", network, network.init(jax.random.key(0)))
    for file in ("x.safetensors", "folder/model.safetensors", "folder/config.json"):
        assert (tmp_path / file).stat().st_mode == (tmp_path / "other").stat().st_mode
