"""Weights in several files: what is read, and an answer for every damage."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest

from jaxkd.interop import shards

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(4, dtype=ml_dtypes.bfloat16),
    "c": np.float16(0.5).reshape(()),
    "d": np.arange(3),
}


def write(folder, max_size=10**9):
    sizes = {name: array.nbytes for name, array in ARRAYS.items()}
    shards.write_shards(folder, sizes, ARRAYS.__getitem__, max_size)


@pytest.mark.parametrize(("max_size", "files"), [(10**9, 1), (60, 2), (25, 3), (1, 4)])
def test_what_was_written_is_read(tmp_path, max_size, files):
    write(tmp_path, max_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / shards.INDEX).is_file() == (files > 1)
    found = shards.Shards(tmp_path)
    for name, array in ARRAYS.items():
        assert (found.tensors[name].shape, found.tensors[name].dtype) == (
            array.shape,
            array.dtype,
        )
        np.testing.assert_array_equal(found.read(name), array)
    part = (slice(1, 3), slice(0, 2))
    np.testing.assert_array_equal(found.read("a", part), ARRAYS["a"][part])


def lying(data, **changes):
    """Return a file with another entry for ``a`` in its header."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["a"] |= changes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"x" * 99,
        lambda data: lying(data, shape=[3, 5]),
        lambda data: lying(data, dtype="F64"),
        lambda data: lying(data, data_offsets=[0, 10**6]),
        lambda data: lying(data, dtype="X9"),
    ],
)
@pytest.mark.parametrize("max_size", [10**9, 60])
def test_a_damaged_file_is_named(tmp_path, damage, max_size):
    write(tmp_path, max_size)
    path = min(tmp_path.glob("*.safetensors"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*: fetch or expo"):
        shards.Shards(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, 60)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002.safetensors is missing, which"):
        shards.Shards(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}']
)
def test_a_damaged_index_is_named(tmp_path, text):
    write(tmp_path, 60)
    (tmp_path / shards.INDEX).write_text(text)
    with pytest.raises(ValueError, match=r"index.json cannot be read .*: fetch the fo"):
        shards.Shards(tmp_path)


def test_an_index_that_contradicts_the_files_is_refused(tmp_path):
    write(tmp_path, 60)
    path = tmp_path / shards.INDEX
    index = json.loads(path.read_text())
    index["weight_map"]["a"] = index["weight_map"]["d"]
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="says that a is in model-00002-of-00002"):
        shards.Shards(tmp_path)


def test_a_pickle_is_refused_by_its_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin is a pickle, whic"):
        shards.Shards(tmp_path)


def test_an_empty_folder_lacks_its_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="one of them holds the weights"):
        shards.Shards(tmp_path)
