"""Data sets by name: read as published, and refused with the remedy where damaged."""

import os
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from jaxkd import data

REASON = f"{data.DATA_VARIABLE} is not set: it names the folder with the data sets"
real = pytest.mark.skipif(data.DATA_VARIABLE not in os.environ, reason=REASON)


@pytest.fixture(scope="module")
def digits():
    return data.digits()


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


@real
def test_the_real_mnist():
    found = data.mnist()
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    assert np.bincount(found.test.arrays["label"])[[0, 1]].tolist() == [980, 1135]
    # The training set's well-known mean intensity.
    assert found.train.arrays["image"].mean() == pytest.approx(0.1307, abs=1e-4)


def webp(images):
    buffer = BytesIO()
    Image.fromarray(images.reshape(-1, 32, 3)).save(buffer, "WEBP", lossless=True)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def cifar_arrays(classes):
    """Two blocks, of three and of two images, in both splits."""
    rng = np.random.default_rng(0)
    images, arrays = {}, {}
    for split in ("train", "test"):
        images[split] = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        blocks = [webp(images[split][:3]), webp(images[split][3:])]
        arrays[f"{split}_webp"] = np.concatenate(blocks)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, blocks)])
        arrays[f"{split}_y"] = rng.integers(0, classes, 5).astype(np.uint8)
    return images, arrays


def write(root, name, arrays):
    (root / "vision").mkdir(exist_ok=True)
    path = root / "vision" / f"{name}.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_unpacked_without_loss(root, name, classes):
    images, arrays = cifar_arrays(classes)
    write(root, name, arrays)
    found = data.load(name)
    assert found.mean == pytest.approx((0.5, 0.5, 0.5), abs=0.06)
    assert found.std == pytest.approx((0.25, 0.25, 0.25), abs=0.03)
    for split, source in (("train", found.train), ("test", found.test)):
        assert (source.name, source.classes) == (f"{name}/{split}", classes)
        assert source.arrays["image"].dtype == np.uint8
        np.testing.assert_array_equal(source.arrays["image"], images[split])
        np.testing.assert_array_equal(source.arrays["label"], arrays[f"{split}_y"])
        assert source.arrays["label"].dtype == np.int32


def test_a_damaged_webp_block_is_named(root):
    _, arrays = cifar_arrays(10)
    start, end = arrays["test_offsets"][1:]
    for spoil in (slice(start, end), slice(start + 30, end), slice(start, start + 8)):
        webp = arrays["test_webp"].copy()
        webp[spoil] = 0
        write(root, "cifar10", {**arrays, "test_webp": webp})
        message = (
            r"cifar10.npz cannot .*the images in block 1 of test .* fetch it again"
        )
        with pytest.raises(ValueError, match=message):
            data.cifar10()


def test_a_webp_block_of_another_size_is_named(root):
    _, arrays = cifar_arrays(10)
    buffer = BytesIO()
    Image.new("RGB", (30, 32)).save(buffer, "WEBP", lossless=True)
    packed = np.frombuffer(buffer.getvalue(), np.uint8)
    other = {"train_webp": packed, "train_offsets": np.array([0, len(packed)])}
    write(root, "cifar10", {**arrays, **other})
    with pytest.raises(ValueError, match=r"block 0 of train cannot be .*not 32 wide"):
        data.cifar10()


def test_a_truncated_or_wrong_file_is_named(root):
    _, arrays = cifar_arrays(100)
    path = write(root, "cifar100", arrays)
    whole = path.read_bytes()
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 255
    for content in (whole[: len(whole) // 2], b"", b"no archive", bytes(spoiled)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar100.npz is damaged .*fetch it ag"):
            data.cifar100()
    del arrays["train_offsets"]
    write(root, "cifar100", arrays)
    with pytest.raises(ValueError, match=r"not the file it should be .*train_offsets"):
        data.cifar100()


def test_labels_that_do_not_fit_the_images_are_refused(root):
    _, arrays = cifar_arrays(10)
    write(root, "cifar10", {**arrays, "train_y": arrays["train_y"][:4]})
    with pytest.raises(ValueError, match=r"'cifar10/train': .*unequal length"):
        data.cifar10()


@real
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_real_cifar_is_normalised_by_its_constants(name):
    found = data.load(name)
    classes = found.train.classes
    counts = np.bincount(found.train.arrays["label"], minlength=classes)
    assert set(counts.tolist()) == {len(found.train) // classes}
    tests = np.bincount(found.test.arrays["label"], minlength=classes)
    assert set(tests.tolist()) == {10_000 // classes}
    image = found.train.arrays["image"][:4000]
    scaled = data.Normalize(found.mean, found.std)({"image": image}, None)["image"]
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=0.03)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), 1, atol=0.03)
