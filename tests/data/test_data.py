"""Data sets are checked when made; batches are shuffled by seed and resumable."""

import os

import jax
import numpy as np
import pytest

from jaxkd import data

REASON = f"{data.DATA_VARIABLE} is not set: it names the folder with vision/mnist.npz"


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def toy(examples=10, classes=3, **changes):
    arrays = {
        "image": np.arange(examples * 4, dtype=np.float32).reshape(examples, 2, 2, 1),
        "label": np.arange(examples, dtype=np.int32) % classes,
    }
    return data.Source("toy", {**arrays, **changes}, classes)


def test_digits_sizes_ranges_and_disjoint_split(digits):
    assert (len(digits.train), len(digits.test)) == (1000, 797)
    for source in (digits.train, digits.test):
        image, label = source.arrays["image"], source.arrays["label"]
        assert image.shape == (len(source), 8, 8, 1)
        assert (image.dtype, label.dtype) == (np.float32, np.int32)
        assert (image.min(), image.max()) == (0, 1)
        assert set(label.tolist()) == set(range(10))
    train, test = (
        {x.tobytes() for x in source.arrays["image"]}
        for source in (digits.train, digits.test)
    )
    # No two of the 1,797 images are equal, so the sets show the split's parts.
    assert len(train | test) == 1797
    again = data.load("digits")
    for part in ("train", "test"):
        for name in ("image", "label"):
            np.testing.assert_array_equal(
                getattr(again, part).arrays[name], getattr(digits, part).arrays[name]
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.ones((0, 2)), "label": np.ones(0, int)}, "the batch is empty"),
        ({"image": np.full((10, 2), np.nan)}, r"holds 20 values that are not finite"),
        ({"label": np.full(10, 3)}, "label 3 at example 0, but the classes are 0 to 2"),
        ({"label": np.arange(9) % 3}, "unequal length"),
    ],
)
def test_a_bad_source_is_refused_with_its_name(changes, message):
    with pytest.raises(ValueError, match=rf"data set 'toy': .*{message}"):
        toy(**changes)


def test_take_returns_the_examples_and_their_index():
    batch = toy().take(np.array([7, 2]))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [28, 8])
    np.testing.assert_array_equal(batch["label"], [1, 2])
    np.testing.assert_array_equal(batch["index"], [7, 2])


def test_subset_is_balanced_deterministic_and_of_the_seed(digits):
    subset = digits.train.subset(57, seed=3)
    counts = np.bincount(subset.arrays["label"], minlength=10)
    assert len(subset) == 57
    assert set(counts.tolist()) == {5, 6}
    assert subset.name == "digits/train[57]"
    same = digits.train.subset(57, seed=3).arrays["image"]
    np.testing.assert_array_equal(same, subset.arrays["image"])
    other = digits.train.subset(57, seed=4).arrays["image"]
    assert not np.array_equal(other, subset.arrays["image"])
    whole = toy().subset(10)
    np.testing.assert_array_equal(whole.arrays["image"], toy().arrays["image"])


@pytest.mark.parametrize("examples", [0, -1, 11])
def test_subset_of_impossible_size_is_refused(examples):
    with pytest.raises(ValueError, match=rf"1 to 10 \(the size of toy\).*{examples}"):
        toy().subset(examples)


def test_unknown_data_set_is_answered_with_the_closest():
    with pytest.raises(ValueError, match=r"unknown data set 'mnits': .*'mnist'"):
        data.load("mnits")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    return tmp_path


def test_data_folder_unset(monkeypatch):
    monkeypatch.delenv(data.DATA_VARIABLE, raising=False)
    remedy = "JAXKD_DATA is not set: point it at the folder that holds vision/mnist.npz"
    with pytest.raises(FileNotFoundError, match=remedy):
        data.mnist()


def test_data_folder_is_no_folder(root, monkeypatch):
    (root / "file").touch()
    for name in ("file", "absent"):
        monkeypatch.setenv(data.DATA_VARIABLE, str(root / name))
        message = rf"{name}', which is not a folder: create it with vision/mnist.npz"
        with pytest.raises(FileNotFoundError, match=message):
            data.mnist()


def test_data_file_missing(root):
    message = r"fashion_mnist.npz is missing: JAXKD_DATA names .*, put vision/fashion_"
    with pytest.raises(FileNotFoundError, match=message):
        data.load("fashion_mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_is_read_from_the_folder(root, name):
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "train_y": rng.integers(0, 10, 6, dtype=np.uint8),
        "test_x": np.full((2, 28, 28), 255, np.uint8),
        "test_y": np.array([9, 0], np.uint8),
    }
    (root / "vision").mkdir()
    np.savez(root / "vision" / f"{name}.npz", **arrays)
    found = data.load(name)
    assert (found.train.name, found.test.name) == (f"{name}/train", f"{name}/test")
    train = found.train.arrays
    assert train["image"].shape == (6, 28, 28, 1)
    assert (train["image"].dtype, train["label"].dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(
        train["image"][..., 0], arrays["train_x"] / 255, rtol=1e-6
    )
    np.testing.assert_array_equal(train["label"], arrays["train_y"])
    assert (found.test.arrays["image"] == 1).all()
    assert found.test.classes == 10


@pytest.mark.skipif(data.DATA_VARIABLE not in os.environ, reason=REASON)
def test_the_real_mnist():
    found = data.mnist()
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    assert np.bincount(found.test.arrays["label"])[[0, 1]].tolist() == [980, 1135]
    # The training set's well-known mean intensity.
    assert found.train.arrays["image"].mean() == pytest.approx(0.1307, abs=1e-4)


def indices(iterator):
    return [batch["index"].tolist() for batch in iterator]


def test_every_epoch_is_a_new_permutation():
    source = toy(12)
    found = list(data.batches(source, 4, epochs=3, seed=5))
    assert len(found) == 3 * data.steps_per_epoch(source, 4)
    for batch in found:
        taken = source.take(batch["index"])
        assert set(batch) == {"image", "label", "index"}
        for name, array in batch.items():
            np.testing.assert_array_equal(array, taken[name])
    epochs = [np.concatenate(indices(found[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_batches_are_of_the_seed():
    source = toy(12)
    first = indices(data.batches(source, 4, epochs=2, seed=5))
    assert first == indices(data.batches(source, 4, epochs=2, seed=5))
    assert first != indices(data.batches(source, 4, epochs=2, seed=6))
    in_order = indices(data.batches(source, 4, epochs=2, seed=None))
    assert in_order == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] * 2


def test_a_rest_smaller_than_a_batch_is_left_out():
    found = indices(data.batches(toy(10), 4, epochs=2))
    assert [len(batch) for batch in found] == [4] * 4
    assert len(set(found[0] + found[1])) == 8


@pytest.mark.parametrize("position", [0, 2, 3, 7, 9])
def test_iterator_resumes_exactly(position):
    source = toy(12)
    whole = indices(data.batches(source, 4, epochs=3, seed=1))
    iterator = iter(data.batches(source, 4, epochs=3, seed=1))
    read = [next(iterator)["index"].tolist() for _ in range(position)]
    state = iterator.get_state()
    assert read + indices(iterator) == whole
    fresh = iter(data.batches(source, 4, epochs=3, seed=1))
    fresh.set_state(state)
    assert indices(fresh) == whole[position:]


@pytest.mark.parametrize(
    ("other", "settings"),
    [
        (toy(12), {"batch_size": 4, "epochs": 3, "seed": 2}),
        (toy(12), {"batch_size": 3, "epochs": 3, "seed": 1}),
        (toy(11), {"batch_size": 4, "epochs": 3, "seed": 1}),
    ],
    ids=["seed", "batch_size", "examples"],
)
def test_another_pipelines_state_is_refused(other, settings):
    state = iter(data.batches(toy(12), 4, epochs=3, seed=1)).get_state()
    iterator = iter(data.batches(other, **settings))
    with pytest.raises(ValueError, match=r"is of Batches\(toy, 12 .*size 4, 3 epochs"):
        iterator.set_state(state)


def test_processes_share_every_batch(monkeypatch):
    source = toy(12)
    whole = indices(data.batches(source, 4, epochs=2))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(indices(data.batches(source, 4, epochs=2)))
    for batch, a, b in zip(whole, *parts, strict=True):
        assert (len(a), len(b)) == (2, 2)
        assert sorted(a + b) == sorted(batch)
    with pytest.raises(ValueError, match=r"3 cannot be divided among 2.* multiple of"):
        data.batches(source, 3, epochs=1)


def test_impossible_batches_are_refused():
    for size in (0, 13):
        with pytest.raises(ValueError, match=rf"must be 1 to 12 .*toy\), got {size}"):
            data.batches(toy(12), size, epochs=1)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        data.batches(toy(12), 4, epochs=0)
