"""The configurations: digits, CIFAR-10 and a linear probe; a GPU's; ImageNet."""

from dataclasses import dataclass, replace
from typing import Literal

from experiments.common.configs import NetworkConfig, OptimizerConfig


@dataclass(frozen=True)
class Table:
    """A data set of which few labels are known, and who learns it from whom.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``, or ``tfds/…``.
        shots: labels a class.
        pool: images to learn from; 0 for all.
        validation: images that the mixture is chosen on; 0 for none, and ``mix``.
        mix: α and β where there is no validation, by the teacher.
        test: images to test on; 0 for all.
        shrink: by which the student's images are averaged down.
        teacher: ``confused`` takes two classes for others, ``embedded`` compares a
            trained network's features with noisy prototypes, ``clip`` is a folder.
        weights: of the teacher below ``$JAXKD_DATA``.
        noise: on the confused teacher's images, or on the prototypes.
        scale: of the teacher's cosines.
        student: the network.
        features: that its heads read.
        embedded: whether the student reads the teacher's features: a linear probe.
        live: whether the teacher sees the student's crops, in every step.
        epochs: passes over the pool.
        batch_size: of labelled images, and again of all.
        optimizer: of the student.
        rows: of the table, names of ``ROWS``.
        seeds: at most so many.
    """

    dataset: str
    shots: int
    pool: int = 0
    validation: int = 0
    mix: tuple[tuple[float, float], ...] = ()
    test: int = 0
    shrink: int = 1
    teacher: Literal["confused", "embedded", "clip"] = "embedded"
    weights: str = "weights/cifar10_resnet20.npz"
    noise: float = 0.0
    scale: float = 100.0
    student: NetworkConfig = NetworkConfig("cifar_resnet", {"depth": 8})
    features: int = 64
    embedded: bool = False
    live: bool = False
    epochs: int = 25
    batch_size: int = 64
    optimizer: OptimizerConfig = OptimizerConfig("adamw", 3e-3, 0.01, "constant")
    rows: tuple[str, ...] = ()
    seeds: int = 5

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Images of pool, validation and test."""
        return self.pool, self.validation, self.test


ONE_HEAD = ("sho_0.2", "sho_0.5", "sho_0.8")
DIGITS = Table(
    "digits",
    shots=2,
    pool=800,
    validation=200,
    teacher="confused",
    noise=0.85,
    student=NetworkConfig("mlp", {"features": 64, "widths": (64, 64)}),
    rows=("cross_entropy", "kd", *ONE_HEAD, "dho"),
)
CIFAR = Table(
    "cifar10",
    shots=10,
    pool=5000,
    validation=500,
    test=1000,
    shrink=2,
    noise=2.0,
    scale=12.0,
    student=NetworkConfig("cifar_resnet", {"depth": 8, "widths": (8, 8, 16, 32)}),
    features=32,
    epochs=3,
    optimizer=OptimizerConfig("adamw", 3e-3, 0.01, "cosine"),
    rows=("cross_entropy", "sho_0.5", "dho", "dho_f"),
    seeds=3,
)
IMAGENET = Table(
    "tfds/imagenet2012",
    shots=1,
    mix=((0.4, 0.5), (0.2, 0.5)),
    teacher="clip",
    weights="weights/clip-vit-base-patch32",
    student=NetworkConfig("imagenet_resnet", {"depth": 18}),
    features=512,
    live=True,
    epochs=20,
    batch_size=256,
    optimizer=OptimizerConfig("adamw", 1e-3, 0.01, "cosine"),
    rows=("cross_entropy", "kd", "sho_0.5", "dho", "dho_f"),
)
SHOTS = (1, 2, 4, 8, 16)
TABLES = {
    "digits, 2 labels a class": DIGITS,
    "digits, 8 labels a class": replace(DIGITS, shots=8),
    "CIFAR-10": CIFAR,
    "linear probe": replace(
        CIFAR,
        shrink=1,
        student=NetworkConfig("mlp", {"features": 64, "widths": ()}),
        features=64,
        embedded=True,
        epochs=10,
        rows=("sho_0.5", "dho", "dho_init", "dho_aligned"),
        seeds=5,
    ),
    "CIFAR-10 at 32x32": replace(
        CIFAR,
        pool=19_000,
        validation=1000,
        test=0,
        shrink=1,
        student=NetworkConfig("cifar_resnet", {"depth": 20}),
        features=64,
        live=True,
        epochs=30,
    ),
    **{
        f"ImageNet, {shots} label{'s' * (shots > 1)} a class": replace(
            IMAGENET, shots=shots
        )
        for shots in SHOTS
    },
}
"""Tables by name."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        tables: names of `TABLES`.
        rows: of those that the tables have, all of ``ROWS``.
        temperature: η of distillation.
    """

    tables: tuple[str, ...]
    rows: tuple[str, ...] = (
        *("cross_entropy", "kd", *ONE_HEAD, "dho", "dho_f", "dho_init", "dho_aligned"),
    )
    temperature: float = 2.0


NAMES = tuple(TABLES)
PRESETS = {
    "small": Config(NAMES[:4]),
    "gpu": Config(NAMES[4:5]),
    "paper": Config(NAMES[5:]),
}
