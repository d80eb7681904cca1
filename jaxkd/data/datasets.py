"""The data sets by name: embedded, files below JAXKD_DATA, and tensorflow-datasets."""

import functools
import os
from collections.abc import Callable, Mapping
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.data.archives import cifar_files, idx_file
from jaxkd.data.sources import Dataset, Example, RecordSource, Source
from jaxkd.data.transforms import CropResize
from jaxkd.registry import constructors
from jaxkd.untrusted import arrays_file, blaming

DATA_VARIABLE = "JAXKD_DATA"
"""The environment variable that names the folder of downloaded data sets."""

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the 50,000 training images, channel by channel, in [0, 1]."""

CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
"""The same of CIFAR-100, as the distillation benchmarks round them."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The same of ImageNet's training images, as the field rounds them."""


def _images(name: str, image: np.ndarray, label: np.ndarray, scale: float) -> Source:
    if image.ndim == 3:
        image = image[..., None]
    image = image.astype(np.float32) / scale
    return Source(name, {"image": image, "label": whole(label, "label")}, 10)


@checked()
def whole(array: np.ndarray, name: str) -> np.ndarray:
    """Return integers of a file as int32.

    Raises:
        ValueError: they are none, or too large, so that others would come out.
    """
    if not np.issubdtype(array.dtype, np.integer) or (array > 2**31 - 1).any():
        raise ValueError(f"{name} must hold integers below 2**31, got {array.dtype}")
    return array.astype(np.int32)


def digits() -> Dataset:
    """Return scikit-learn's handwritten digits: 8x8 images, 1,000 train and 797 test.

    They are in scikit-learn's package (from UCI's Optical Recognition of Handwritten
    Digits, Alpaydin and Kaynak 1998), so nothing is downloaded. Values are in [0, 1];
    the split is a fixed permutation.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    image, label = bunch.images[order], bunch.target[order]
    return Dataset(
        _images("digits/train", image[:1000], label[:1000], 16.0),
        _images("digits/test", image[1000:], label[1000:], 16.0),
    )


@checked()
def data_file(relative: str, *others: str) -> Path:
    """Return the first file or folder that is there, below what JAXKD_DATA names.

    Args:
        relative: path of the file.
        *others: what may stand in for it.

    Raises:
        FileNotFoundError: the variable is unset, or the folder or file is not there.
            The message says what to set or download.
    """
    wanted = " or ".join((relative, *others))
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        raise FileNotFoundError(
            f"{DATA_VARIABLE} is not set: point it at the folder that holds {wanted}"
        )
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"{DATA_VARIABLE} names {root!r}, which is not a folder: create it with "
            f"{wanted} inside, or correct the variable"
        )
    for path in (Path(root) / name for name in (relative, *others)):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{Path(root) / relative} is missing: {DATA_VARIABLE} names {root!r}, put "
        f"{wanted} there"
    )


@checked()
def read_arrays(relative: str, names: list[str]) -> list[np.ndarray]:
    """Return arrays of an ``.npz`` file below JAXKD_DATA."""
    path = data_file(relative)
    try:
        found = arrays_file(path, names)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged or not the file it should be ({error}): fetch it again"
        ) from None
    return [found[name] for name in names]


def _mnist_file(name: str) -> Dataset:
    found = data_file(f"vision/{name}.npz", f"vision/{name}")
    if found.is_dir():
        kinds = "images-idx3-ubyte", "labels-idx1-ubyte"
        arrays = [
            _idx(found, f"{s}-{kind}") for s in ("train", "t10k") for kind in kinds
        ]
    else:
        names = ["train_x", "train_y", "test_x", "test_y"]
        arrays = read_arrays(f"vision/{name}.npz", names)
    train_x, train_y, test_x, test_y = arrays
    with blaming(str(found)):
        if {train_x.dtype, test_x.dtype} != {np.dtype(np.uint8)}:
            raise ValueError(f"images are {train_x.dtype}, {test_x.dtype}, not uint8")
        return Dataset(
            _images(f"{name}/train", train_x, train_y, 255.0),
            _images(f"{name}/test", test_x, test_y, 255.0),
        )


def _idx(folder: Path, name: str) -> np.ndarray:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return idx_file(file)
    raise FileNotFoundError(f"{folder} holds no {name}, compressed or not")


def mnist() -> Dataset:
    """Return MNIST's 28x28 digits from ``$JAXKD_DATA/vision/mnist.npz``.

    The file holds uint8 ``train_x``, ``test_x`` (images, 28, 28) and ``train_y``,
    ``test_y``. In its stead a folder ``vision/mnist`` may hold the four released files,
    ``train-images-idx3-ubyte.gz`` and so on.
    """
    return _mnist_file("mnist")


def fashion_mnist() -> Dataset:
    """Return Fashion-MNIST from ``$JAXKD_DATA/vision/fashion_mnist``, as `mnist`."""
    return _mnist_file("fashion_mnist")


FOLDERS = {10: ("batches-py", "batches-bin"), 100: ("python", "binary")}
"""Ends of the names of the folders that CIFAR's archives hold."""


def _cifar(name: str, classes: int) -> tuple[Source, Source]:
    archive = f"vision/cifar-{classes}"
    found = data_file(
        f"vision/{name}.npz",
        *(f"{archive}-{form}.tar.gz" for form in ("python", "binary")),
        *(f"{archive}-{folder}" for folder in FOLDERS[classes]),
    )
    sources = []
    if found.suffix != ".npz":
        splits = zip(("train", "test"), cifar_files(found, classes), strict=True)
        for split, (image, label) in splits:
            arrays = {"image": image, "label": label}
            sources.append(Source(f"{name}/{split}", arrays, classes))
        return sources[0], sources[1]
    for split in ("train", "test"):
        names = [f"{split}_{part}" for part in ("webp", "offsets", "y")]
        packed, borders, label = read_arrays(f"vision/{name}.npz", names)
        with blaming(str(data_file(f"vision/{name}.npz"))):
            image = [
                _webp(packed[start:end].tobytes(), f"block {i} of {split}")
                for i, (start, end) in enumerate(pairwise(borders.tolist()))
            ]
            arrays = {"image": np.concatenate(image), "label": whole(label, "label")}
            sources.append(Source(f"{name}/{split}", arrays, classes))
    return sources[0], sources[1]


def _webp(content: bytes, block: str) -> np.ndarray:
    """Decode 32x32 images that lie below one another in a WebP image."""
    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=["WEBP"]) as image:
            if image.width != 32 or image.height % 32:
                raise ValueError(f"they are {image.size}, not 32 wide and high")
            return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)
    except Exception as error:  # whatever a damaged image causes
        raise ValueError(
            f"the images in {block} cannot be decoded ({error}): the file is damaged, "
            "fetch it again"
        ) from None


def cifar10() -> Dataset:
    """Return CIFAR-10's 32x32 images from ``$JAXKD_DATA/vision/cifar10.npz``, as uint8.

    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". For each
    split the file holds ``train_webp``, lossless WebP images of 32x32 tiles below one
    another; ``train_offsets``, their borders; and ``train_y``. It may hold a part of
    the 50,000 training images. In its stead the released ``cifar-10-python.tar.gz`` or
    ``cifar-10-binary.tar.gz`` may lie there, or what it holds; ``tfds/cifar10`` is the
    whole set too.
    """
    return Dataset(*_cifar("cifar10", 10), CIFAR10_MEAN, CIFAR10_STD)


def cifar100() -> Dataset:
    """Return CIFAR-100 with its 100 fine classes, as `cifar10` does CIFAR-10."""
    return Dataset(*_cifar("cifar100", 100), CIFAR100_MEAN, CIFAR100_STD)


def _plain(record: Example, rng: np.random.Generator | None) -> Example:
    return {"image": record["image"], "label": np.int32(record["label"])}


@checked()
def tfds_splits(
    name: str, splits: list[str], data_dir: str | Path | None
) -> tuple[dict[str, Any], list[Any]]:
    """Return the features of a data set of tensorflow-datasets, and splits' records.

    Args:
        name: of the data set, prepared as array_record files.
        splits: such as ``["train", "test"]``.
        data_dir: of prepared data sets; None for the library's own default.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        FileNotFoundError: the data set is not prepared. It says how to.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ImportError(
            f"tfds/{name} needs tensorflow-datasets: pip install 'jaxkd-distill[tfds]'"
        ) from None
    try:
        builder: Any = tfds.builder(name, data_dir=data_dir)
        records = builder.as_data_source(split=splits)
    except Exception as error:  # not found, not prepared, of another format
        reason = str(error).strip().splitlines() or [type(error).__name__]
        where = data_dir or "$TFDS_DATA_DIR or ~/tensorflow_datasets"
        raise FileNotFoundError(
            f"tensorflow-datasets has no {name!r} in {where} that can be read in any "
            f"order ({reason[0]:.200}): prepare it by `tfds build {name} "
            "--file_format=array_record` where TensorFlow is installed"
        ) from error
    return dict(builder.info.features.items()), list(records)


@checked()
def tfds_dataset(
    name: str,
    *,
    test: str = "test",
    data_dir: str | Path | None = None,
    decode: Callable[[Any, np.random.Generator | None], Example] = _plain,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Dataset:
    """Return an image classification set of tensorflow-datasets, without TensorFlow.

    Its records must be prepared as array_record files, which can be read in any order:
    ``tfds build NAME --file_format=array_record`` downloads and prepares them, once, on
    a machine that has TensorFlow.

    Args:
        name: such as ``"cifar100"`` or ``"imagenet2012"``.
        test: the split to evaluate on.
        data_dir: of prepared data sets; None for the library's own default,
            ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
        decode: of a record with ``image`` and ``label``, as `RecordSource` takes it.
        mean: of each channel, for `Normalize`.
        std: of each channel.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        FileNotFoundError: the data set is not prepared. It says how to.
        ValueError: it has no labels.
    """
    features, records = tfds_splits(name, ["train", test], data_dir)
    classes = getattr(features.get("label"), "num_classes", None)
    if classes is None or "image" not in features:
        raise ValueError(
            f"tfds/{name} has the features {sorted(features)}, but an image "
            "classification set has image and label: choose another"
        )
    train_source, test_source = (
        RecordSource(f"tfds/{name}/{split}", part, decode, classes)
        for split, part in zip(("train", test), records, strict=True)
    )
    return Dataset(train_source, test_source, mean, std)


def _cropped(
    record: Example, rng: np.random.Generator | None, smallest: float = 0.08
) -> Example:
    image = CropResize(224, smallest)(record["image"], rng)
    return {"image": image, "label": np.int32(record["label"])}


PREPARED: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {"mean": CIFAR10_MEAN, "std": CIFAR10_STD},
    "cifar100": {"mean": CIFAR100_MEAN, "std": CIFAR100_STD},
    # For networks made for ImageNet's size.
    "cifar100_224": {
        "name": "cifar100",
        "decode": _cropped,
        "mean": CIFAR100_MEAN,
        "std": CIFAR100_STD,
    },
    # The labels of ImageNet's own test split are not public.
    "imagenet2012": {"test": "validation", "decode": _cropped},
    # For learning without labels, which takes larger crops.
    "imagenet2012_wide": {
        "name": "imagenet2012",
        "test": "validation",
        "decode": functools.partial(_cropped, smallest=0.2),
    },
}
"""Arguments of `tfds_dataset`, by the data set's name or one of ours."""

DATASETS: dict[str, Callable[[], Dataset]] = constructors(
    globals(), Dataset, besides=("tfds_dataset",)
) | {
    f"tfds/{name}": functools.partial(tfds_dataset, **{"name": name, **arguments})
    for name, arguments in PREPARED.items()
}
"""Data sets by name: the functions above, and ``tfds/NAME``."""


@checked()
def load(name: str) -> Dataset:
    """Return the data set of that name.

    Raises:
        ValueError: no data set has that name.
        FileNotFoundError: its files are not there.
    """
    if name not in DATASETS:
        raise ValueError(unknown_name("data set", name, DATASETS))
    return DATASETS[name]()
