"""HARD's settings: what is learnt, by which networks, and with which augmentations."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.common.classification import Classification, ImagesConfig
from experiments.common.configs import NetworkConfig, OptimizerConfig
from jaxkd import data
from jaxkd.data.corruptions import SEVERITIES
from jaxkd.network import Network
from jaxkd.papers import hard
from jaxkd.papers.hard import Augmenter, Controller

CANVAS = 14
"""Pixels of the side of the canvas on which digits are centred."""

SHIFTS = ((3, 0), (-3, 0), (0, 3), (0, -3), (2, 2), (2, -2), (-2, 2), (-2, -2))
"""Pixels by which the shifted test moves every digit: each of these."""


class PooledCNN(nnx.Module):
    """Convolutions and a maximum over places: it hardly sees where a digit is."""

    def __init__(self, classes: int, *, rngs: nnx.Rngs):
        sizes = ((1, 12, 3), (12, 24, 3), (24, 32, 5))
        self.convs = nnx.List(
            nnx.Conv(a, b, (kernel, kernel), rngs=rngs) for a, b, kernel in sizes
        )
        self.head = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        """Return logits (batch, classes)."""
        for conv in self.convs:
            image = jax.nn.relu(conv(image))
        return self.head(image.max((1, 2)))


def on_canvas(source: Any, shift: tuple[int, int] = (0, 0)) -> data.Source:
    """Return digits in the middle of a black canvas, or moved from there."""
    image = source.arrays["image"]
    before = (CANVAS - image.shape[1]) // 2
    after = CANVAS - image.shape[1] - before
    sides = [(before + s, after - s) for s in shift]
    placed = np.pad(image, ((0, 0), *sides, (0, 0)))
    name = f"{source.name} on {CANVAS}x{CANVAS}, moved by {shift}"
    return data.Source(name, {**source.arrays, "image": placed}, source.classes)


@dataclass(frozen=True)
class Row:
    """What a student learns from beside the clean images.

    Attributes:
        augmenter: of the images; None for no augmented ones.
        trained: whether it learns.
        schedule: of the two players.
        consistency: γ, of the teacher's answer.
        replay: augmented batches that are kept.
        radius: in which a VAE's latents move, in place of an augmenter.
        labels: whether the labels are learnt in place of the teacher.
        longer: times the epochs.
    """

    augmenter: Augmenter | None = None
    trained: bool = False
    schedule: Any = "joint"
    consistency: float = 1.0
    replay: int = 100
    radius: float = 0.0
    labels: bool = False
    longer: int = 1


def _rows(
    bounds: tuple[float, float, Any], mixing: bool, hand: Mapping[str, Augmenter]
) -> dict[str, Row]:
    """Return the rows that settings share, and those with what is made by hand."""
    found = {
        "cross_entropy": Row(labels=True),
        "kd": Row(),
        "kd_long": Row(longer=3),
        **{name: Row(augmenter) for name, augmenter in hand.items()},
        "untrained": Row(hard.affine(*bounds)),
        "hard_affine": Row(hard.affine(*bounds), trained=True),
    }
    if mixing:
        found["hard_mix"] = Row(hard.mix(), trained=True, consistency=0.0)
    return found


MOVES = (0.5, 0.0, "zeros")
HARD = Row(hard.affine(*MOVES), trained=True)
WEAK = hard.affine(*MOVES, Controller(noise_scale=0.1))
DIGITS_ROWS = {
    **_rows(MOVES, mixing=False, hand={"random_shifts": hard.random_affine(*MOVES)}),
    "hard_threshold": replace(HARD, schedule="threshold"),
    "hard_no_replay": replace(HARD, replay=0),
    "hard_weak_noise": replace(HARD, augmenter=WEAK, replay=0),
    "hard_latent": Row(trained=True, radius=4.0),
}
PHOTO = (0.25, 0.3, "reflect")
PHOTO_ROWS = _rows(
    PHOTO,
    mixing=True,
    hand={
        "random_affine": hard.random_affine(*PHOTO),
        "rand_augment": hard.rand_augment(),
    },
)


@dataclass(frozen=True)
class Setting:
    """A data set, its networks, and what students meet.

    Attributes:
        images: the data, and how long students learn them.
        optimizer: of the students.
        student: learns from the teacher.
        teacher: trained on the labels; None for `PooledCNN`.
        teacher_epochs: of the teacher, on all examples.
        teacher_optimizer: its own.
        rows: of the table.
        train_examples: that students see; 0 for all.
        augmenter_rate: of the augmenters' Adam.
        thresholds: of the schedule ``"threshold"``.
        severities: of the corruptions that students are tested on.
        corrupted: examples of the test that are corrupted; 0 for all.
        canvas: whether the digits are put on a canvas, and tested on shifts.
        seeds: at most so many.
    """

    images: ImagesConfig
    optimizer: OptimizerConfig
    student: NetworkConfig
    teacher: NetworkConfig | None
    teacher_epochs: int
    teacher_optimizer: OptimizerConfig
    rows: Mapping[str, Row]
    train_examples: int = 0
    augmenter_rate: float = 1e-3
    thresholds: tuple[float, float] = (1.0, 2.5)
    severities: tuple[int, ...] = (1, 3, 5)
    corrupted: int = 0
    canvas: bool = False
    seeds: int = 3

    def load(self) -> Classification:
        """Return all the data."""
        found = self.images.load(self.optimizer)
        if not self.canvas:
            return found
        return replace(found, train=on_canvas(found.train), test=on_canvas(found.test))

    def networks(self, classes: int) -> tuple[Network, Network]:
        """Return student and teacher."""
        if self.teacher is None:
            teacher = Network.from_nnx(lambda rngs: PooledCNN(classes, rngs=rngs))
        else:
            teacher = self.teacher.build(classes)
        return self.student.build(classes), teacher


ADAMW = OptimizerConfig("adamw", 2e-3, weight_decay=1e-4, schedule="constant")
CIFAR = Setting(
    ImagesConfig("cifar10", 2000, 2, epochs=5, batch_size=64, evaluate_every=1),
    replace(ADAMW, schedule="cosine"),
    NetworkConfig("cifar_resnet", {"depth": 8, "widths": (8, 8, 16, 32)}),
    NetworkConfig("cifar_resnet", {"depth": 8}),
    4,
    OptimizerConfig("adamw", 4e-3, weight_decay=1e-2),
    PHOTO_ROWS,
    train_examples=5000,
    corrupted=300,
)
SETTINGS = {
    "digits": Setting(
        ImagesConfig("digits", epochs=27, batch_size=64),
        ADAMW,
        NetworkConfig("mlp", {"features": CANVAS**2, "widths": (256, 128)}),
        None,
        27,
        ADAMW,
        DIGITS_ROWS,
        corrupted=300,
        canvas=True,
    ),
    "cifar": CIFAR,
    "cifar32": replace(
        CIFAR,
        images=ImagesConfig("cifar10", epochs=60, batch_size=128, evaluate_every=10),
        student=NetworkConfig("cifar_resnet", {"depth": 8}),
        teacher=NetworkConfig("cifar_resnet", {"depth": 56}),
        teacher_epochs=60,
        train_examples=0,
        augmenter_rate=1e-4,
        severities=SEVERITIES,
        corrupted=0,
    ),
    "cifar10-full": Setting(
        ImagesConfig("tfds/cifar10", epochs=200, batch_size=256, evaluate_every=10),
        OptimizerConfig("adamw", 1e-3, weight_decay=0.05, warmup=0.05),
        NetworkConfig("vit", {"image_size": 32, "patch_size": 4}),
        NetworkConfig("imagenet_resnet", {"depth": 18, "stem": "cifar"}),
        200,
        OptimizerConfig("sgd", 0.1, 5e-4),
        PHOTO_ROWS,
        augmenter_rate=1e-4,
        severities=SEVERITIES,
    ),
}
