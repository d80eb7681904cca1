"""Digits or CIFAR-10 divided anew for every seed, with some training labels wrong."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.common.classification import pooled
from jaxkd import data

Regression = tuple[np.ndarray, np.ndarray]
"""Flat images, and one-hot labels less 0.1: targets are not centred by the fits."""


@dataclass(frozen=True)
class SplitConfig:
    """How examples are divided.

    Attributes:
        train: examples to train on; 0 for all that are not for validation.
        validation: examples to choose weights by.
        noise: share of the training labels that are drawn anew at random.
        pooled: whether the data set's own test examples are divided too; else they
            are the test.
    """

    train: int = 300
    validation: int = 300
    noise: float = 0.3
    pooled: bool = True


@dataclass(frozen=True)
class Split:
    """One division: only the training labels are wrong."""

    train: data.Source
    validation: data.Source
    test: data.Source

    def regression(self) -> tuple[Regression, Regression, Regression]:
        """Return inputs and targets of all three parts."""

        def of(part: data.Source) -> Regression:
            images = part.arrays["image"].reshape(len(part), -1)
            onehot = np.eye(part.classes)[part.arrays["label"]]
            return images.astype(np.float64), onehot - 0.1

        return of(self.train), of(self.validation), of(self.test)


def divide(config: SplitConfig, train: Any, test: Any, seed: int) -> Split:
    """Return a division of a data set.

    Args:
        config: the sizes.
        train: the data set's training examples, a `data.Source`.
        test: its test examples, another.
        seed: of the division and the wrong labels.
    """
    if config.pooled:
        train = pooled(train, test)
    rest, validation = data.split(train, config.validation, seed=seed)
    if config.pooled:
        test, rest = data.split(rest, config.train, seed=seed)
    elif config.train:
        rest = data.split(rest, config.train, seed=seed)[1]
    rng = np.random.default_rng(seed)
    label = rest.arrays["label"].copy()
    wrong = rng.permutation(len(label))[: round(config.noise * len(label))]
    label[wrong] = rng.integers(train.classes, size=len(wrong))
    rest = replace(rest, arrays={**rest.arrays, "label": label})
    return Split(rest, validation, test)
