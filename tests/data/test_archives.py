"""Released archives, written here byte by byte as their authors' programs do."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.archives import cifar_files, idx_file

RNG = np.random.default_rng(0)


def image_rows(count):
    """Images, and CIFAR's rows of them: red, green, blue."""
    image = RNG.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return image, image.transpose(0, 3, 1, 2).reshape(count, -1)


def text(value):
    return b"T" + len(value).to_bytes(4, "little") + value


def python2(rows, name, labels):
    """The pickle that Python 2 makes of ``{"data": rows, name: labels}``."""
    shape = b"M" + len(rows).to_bytes(2, "little") + b"M\x00\x0c\x86"
    dtype = (
        b"cnumpy\ndtype\nq\x02U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
    )
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\x00\x85"
    array += b"U\x01b\x87R(K\x01" + shape + dtype + b"\x89" + text(rows.tobytes())
    array += b"tb"
    listed = b"](" + b"".join(b"K" + bytes([x]) for x in labels) + b"e"
    parts = text(b"data") + array + text(name.encode()) + listed
    return b"\x80\x02}q\x00(" + parts + b"u."


def python3(rows, name, labels):
    return pickle.dumps({b"data": rows, name.encode(): labels}, protocol=2)


def binary(rows, name, labels):
    coarse = [[0] * (name == "fine_labels") + [label] for label in labels]
    heads = np.array(coarse, np.uint8)
    return np.concatenate([heads, rows], axis=1).tobytes()


def archive(path, files):
    with tarfile.open(path, "w:gz") as found:
        for name, content in files.items():
            member = tarfile.TarInfo(f"inside/{name}")
            member.size = len(content)
            found.addfile(member, io.BytesIO(content))
    return path


FILES = {
    10: [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
    100: ["train", "test"],
}


def released(write, classes):
    """All files of a release, and their images and labels in order."""
    name = "labels" if classes == 10 else "fine_labels"
    suffix = ".bin" if write is binary else ""
    files, images, labels = {"readme.html": b"x"}, [], []
    for i, file in enumerate(FILES[classes]):
        image, rows = image_rows(3)
        label = [i, (7 * i + 2) % classes, classes - 1]
        files[file + suffix] = write(rows, name, label)
        images.append(image)
        labels.append(label)
    return files, images, labels


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("write", [python2, python3, binary])
def test_cifar_is_read_as_it_was_released(write, classes, tmp_path, monkeypatch):
    files, images, labels = released(write, classes)
    (tmp_path / "vision").mkdir()
    form = "binary" if write is binary else "python"
    archive(tmp_path / "vision" / f"cifar-{classes}-{form}.tar.gz", files)
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    found = data.load(f"cifar{classes}")
    for source, image, label in (
        (found.train, images[:-1], labels[:-1]),
        (found.test, images[-1:], labels[-1:]),
    ):
        batch = source.take(np.arange(len(source)))
        np.testing.assert_array_equal(batch["image"], np.concatenate(image))
        np.testing.assert_array_equal(batch["label"], np.concatenate(label))
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    np.testing.assert_array_equal(cifar_files(folder, classes)[1][0], images[-1])


class Bomb:
    def __reduce__(self):
        return eval, ("[].append(1/0)",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pickle.dumps({b"data": Bomb(), b"labels": [1]}, protocol=2), "no array of"),
        (pickle.dumps(Bomb()), "holds no dict"),
        (pickle.dumps({"data": 1}, protocol=0), "DICT is none of"),
        (python2(image_rows(3)[1], "labels", [1, 2]), "no list of 3"),
        (python2(image_rows(3)[1], "labels", [1, 2, 10]), "label 10 of 10"),
        (python2(image_rows(2)[1][:, :-1], "labels", [1, 2]), "not 2 images'"),
        (python2(image_rows(2)[1], "labels", [1, 2])[:-9], "ends|fit|pickle|exhaust"),
        (b"\x80\x02]q\x00(h\x00h\x00eh\x05.", "do not fit"),
        (b"", "pickle|ends"),
        (b"\x80\x02}(]K\x01u.", "a list stands where a text"),
        (b"\x80\x02K\x01Q.", "BINPERSID"),
    ],
)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(content, why, tmp_path):
    files, _, _ = released(python2, 10)
    path = archive(tmp_path / "x.tar.gz", {**files, "data_batch_2": content})
    with pytest.raises(ValueError, match=f"data_batch_2 of .*({why}).*: fetch it"):
        cifar_files(path, 10)


def test_a_damaged_archive_is_named(tmp_path):
    files, _, _ = released(binary, 10)
    path = archive(tmp_path / "x.tar.gz", files)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x.tar.gz is damaged or no archive"):
        cifar_files(path, 10)
    del files["data_batch_4.bin"]
    with pytest.raises(FileNotFoundError, match=r"holds no data_batch_4\.bin"):
        cifar_files(archive(path, files), 10)
    files["data_batch_4.bin"] = b"123"
    with pytest.raises(ValueError, match="3 bytes are no whole number of images"):
        cifar_files(archive(path, files), 10)


def idx(array):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return b"\x00\x00\x08" + bytes([array.ndim]) + sizes + array.tobytes()


def test_mnist_is_read_as_it_was_released(tmp_path, monkeypatch):
    folder = tmp_path / "vision" / "mnist"
    folder.mkdir(parents=True)
    image = RNG.integers(0, 256, (4, 28, 28), np.uint8)
    label = np.array([3, 1, 4, 9], np.uint8)
    for split, some in (("train", slice(3)), ("t10k", slice(3, 4))):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(image[some]))
        with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(idx(label[some]))
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    batch = data.load("mnist").train.take(np.arange(3))
    np.testing.assert_array_equal(batch["image"][..., 0], image[:3] / np.float32(255))
    np.testing.assert_array_equal(batch["label"], label[:3])
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte is damaged: .*1, 28"):
        idx_file(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="is no idx file of bytes"):
        idx_file(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no t10k-images-idx3-ubyte"):
        data.load("mnist")
