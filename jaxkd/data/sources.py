"""Where examples come from: data sets in memory, checked once when they are made."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.checks import check_batch, unknown_name

DATA_VARIABLE = "JAXKD_DATA"
"""The environment variable that names the folder of downloaded data sets."""


@dataclass(frozen=True)
class Source:
    """Examples in memory.

    Attributes:
        name: for messages and results.
        arrays: ``image`` (examples, height, width, channels), ``label`` (examples,), …
        classes: labels are below it.

    Raises:
        ValueError: no examples, arrays of different lengths, values that are not
            finite, or labels out of range.
    """

    name: str
    arrays: dict[str, np.ndarray]
    classes: int

    def __post_init__(self):
        try:
            check_batch(self.arrays, self.classes)
        except ValueError as error:
            raise ValueError(f"data set {self.name!r}: {error}") from None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self.arrays.values())))

    def take(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples at these positions, and the positions as ``index``."""
        batch = {name: array[positions] for name, array in self.arrays.items()}
        return {**batch, "index": np.asarray(positions, np.int32)}

    def subset(self, examples: int, seed: int = 0) -> "Source":
        """Return a random subset with the classes as balanced as they can be.

        Args:
            examples: how many, at most all.
            seed: of the choice.

        Raises:
            ValueError: more examples than there are, or none.
        """
        if not 0 < examples <= len(self):
            raise ValueError(
                f"examples must be 1 to {len(self)} (the size of {self.name}), got "
                f"{examples}"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        label = self.arrays["label"][order]
        # Each example's rank within its class, first ranks first.
        rank = np.zeros(len(order), int)
        for value in np.unique(label):
            rank[label == value] = np.arange(np.sum(label == value))
        chosen = np.sort(order[np.argsort(rank, kind="stable")[:examples]])
        arrays = {name: array[chosen] for name, array in self.arrays.items()}
        return Source(f"{self.name}[{examples}]", arrays, self.classes)


@dataclass(frozen=True)
class Dataset:
    """A training and a test source of the same classes."""

    train: Source
    test: Source


def _images(name: str, image: np.ndarray, label: np.ndarray, scale: float) -> Source:
    if image.ndim == 3:
        image = image[..., None]
    image = image.astype(np.float32) / scale
    return Source(name, {"image": image, "label": label.astype(np.int32)}, 10)


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


def data_file(relative: str) -> Path:
    """Return a file below the folder that JAXKD_DATA names.

    Raises:
        FileNotFoundError: the variable is unset, or the folder or file is not there.
            The message says what to set or download.
    """
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        raise FileNotFoundError(
            f"{DATA_VARIABLE} is not set: point it at the folder that holds {relative}"
        )
    path = Path(root) / relative
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"{DATA_VARIABLE} names {root!r}, which is not a folder: create it with "
            f"{relative} inside, or correct the variable"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {DATA_VARIABLE} names {root!r}, put {relative} there"
        )
    return path


def _mnist_file(name: str) -> Dataset:
    with np.load(data_file(f"vision/{name}.npz"), allow_pickle=False) as file:
        return Dataset(
            _images(f"{name}/train", file["train_x"], file["train_y"], 255.0),
            _images(f"{name}/test", file["test_x"], file["test_y"], 255.0),
        )


def mnist() -> Dataset:
    """Return MNIST's 28x28 digits from ``$JAXKD_DATA/vision/mnist.npz``.

    The file holds uint8 ``train_x``, ``test_x`` (images, 28, 28) and ``train_y``,
    ``test_y``.
    """
    return _mnist_file("mnist")


def fashion_mnist() -> Dataset:
    """Return Fashion-MNIST from ``$JAXKD_DATA/vision/fashion_mnist.npz``."""
    return _mnist_file("fashion_mnist")


DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "mnist": mnist,
}
"""Data sets by name."""


def load(name: str) -> Dataset:
    """Return the data set of that name.

    Raises:
        ValueError: no data set has that name.
        FileNotFoundError: its files are not there.
    """
    if name not in DATASETS:
        raise ValueError(unknown_name("data set", name, DATASETS))
    return DATASETS[name]()
