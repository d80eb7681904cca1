"""What can be set of a run: how students learn, networks and data, and the presets."""

from dataclasses import dataclass, replace

from experiments.common.classification import Classification, ImagesConfig
from experiments.common.configs import CIFAR_SGD, NetworkConfig, OptimizerConfig
from experiments.common.networks import PAIRS, PairSpec
from jaxkd import data
from jaxkd.methods import combine, cross_entropy, kd, mixstd
from jaxkd.types import Method

MIXED_TEACHER = "mixup_teacher"


@dataclass(frozen=True)
class Row:
    """How a student learns.

    Attributes:
        temperature: of the distillation; None for MIXSTD.
        mixed: share of the examples that are mixed.
        beta: of the shares' distribution.
        replace: whether the unmixed are drawn with replacement, as the authors do.
        teacher: the row it learns from; empty for the labels alone.
    """

    temperature: float | None = 4.0
    mixed: float = 0.0
    beta: float = 1.0
    replace: bool = False
    teacher: str = "teacher"

    def method(self, gamma: float, alpha: float) -> Method:
        """Return the objective, with weights of labels and teacher."""
        if not self.teacher:
            return cross_entropy()
        if self.temperature is None:
            return mixstd(gamma, alpha)
        return combine((gamma, cross_entropy()), (alpha, kd(self.temperature)))

    def mixing(self, images: Classification) -> Classification:
        """Return the data, mixed behind all other transforms."""
        if not self.mixed:
            return images
        mixup = data.Mixup(
            self.beta,
            images.classes,
            mixed=self.mixed,
            per_example=True,
            replace=self.replace,
        )
        before = () if images.transform is None else (images.transform,)
        return replace(images, transform=data.Compose((*before, mixup)))


ROWS = {
    "cross_entropy": Row(teacher=""),
    "cross_entropy_full": Row(mixed=1.0, teacher=""),
    "kd": Row(),
    "kd_10": Row(mixed=0.1),
    "kd_full": Row(mixed=1.0),
    "kd_t1": Row(1.0),
    "kd_t1_full": Row(1.0, 1.0),
    "mixstd": Row(None),
    "mixstd_10": Row(None, 0.1),
    "mixstd_41": Row(None, 0.1, replace=True),
    "mixstd_full": Row(None, 1.0),
    "mixstd_10_beta0.4": Row(None, 0.1, 0.4),
    "mixstd_10_beta0.2": Row(None, 0.1, 0.2),
    "kd_from_mixup": Row(teacher=MIXED_TEACHER),
    "kd_full_from_mixup": Row(mixed=1.0, teacher=MIXED_TEACHER),
    "mixstd_10_from_mixup": Row(None, 0.1, teacher=MIXED_TEACHER),
}


@dataclass(frozen=True)
class Table:
    """A pair of networks and its data.

    Attributes:
        pair: teacher and student.
        task: the images, and how long students learn them.
        optimizer: of the students.
        rows: names of `ROWS`; none for all.
        train_examples: that students see; 0 for all.
        teacher_examples: that teachers see; 0 for all.
        teacher_epochs: of the teachers; 0 for as many as the students.
        teacher_optimizer: of the teachers; None for the students'.
        attack: size of the perturbations that robustness is measured by.
        seeds: at most so many.
    """

    pair: PairSpec
    task: ImagesConfig
    optimizer: OptimizerConfig
    rows: tuple[str, ...] = ()
    train_examples: int = 0
    teacher_examples: int = 0
    teacher_epochs: int = 0
    teacher_optimizer: OptimizerConfig | None = None
    attack: float = 0.03
    seeds: int = 3


MAIN = ("kd", "kd_full", "kd_t1_full", "mixstd_10", "mixstd_full", "kd_from_mixup")
PAPER_PAIRS = (
    *("resnet110-resnet20", "resnet32x4-resnet8x4", "wrn40_2-wrn16_2", "vgg13-vgg8"),
)
TABLES = {
    "digits": Table(
        PairSpec(
            NetworkConfig("mlp", {"features": 64, "widths": (256, 64)}),
            NetworkConfig("mlp", {"features": 64, "widths": (16,)}),
        ),
        ImagesConfig("digits", evaluate_every=50),
        OptimizerConfig("adam", 1e-2),
        train_examples=100,
        teacher_epochs=60,
        teacher_optimizer=OptimizerConfig("adam", 3e-3),
        attack=0.1,
        seeds=5,
    ),
    "cifar10": Table(
        PairSpec(
            NetworkConfig("cnn", {"channels_in": 3, "channels": (16, 32, 64)}),
            NetworkConfig("cnn", {"channels_in": 3, "channels": (8, 16)}),
        ),
        ImagesConfig(
            "cifar10",
            test_examples=2000,
            shrink=2,
            epochs=6,
            batch_size=64,
            evaluate_every=6,
        ),
        OptimizerConfig("adam", 3e-3),
        rows=MAIN,
        train_examples=5000,
        teacher_examples=5000,
        teacher_epochs=10,
    ),
    **{
        pair: Table(
            PAIRS[pair],
            ImagesConfig("tfds/cifar100", epochs=240, batch_size=64),
            CIFAR_SGD,
        )
        for pair in PAPER_PAIRS
    },
    "cifar100 on one GPU": Table(
        PAIRS["resnet56-resnet20"],
        ImagesConfig("cifar100", epochs=30, batch_size=128, evaluate_every=30),
        replace(CIFAR_SGD, schedule="cosine", milestones=()),
        rows=MAIN,
    ),
}
"""Pairs and data sets, by name."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        tables: names of `TABLES`.
        rows: names of `ROWS`, of all that a table has.
        gamma: weight of the labels.
        alpha: weight of the teacher.
        temperatures: of the grid of temperatures and mixed shares on the first table.
        shares: of that grid.
        grid_seeds: at most so many for that grid.
    """

    tables: tuple[str, ...] = ("digits", "cifar10")
    rows: tuple[str, ...] = tuple(ROWS)
    gamma: float = 0.1
    alpha: float = 0.9
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 20.0)
    shares: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0)
    grid_seeds: int = 2

    def grid(self) -> dict[str, Row]:
        """Return the grid's rows by name."""
        return {
            f"T {t:g}, {share:.0%}": Row(t, share)
            for t in self.temperatures
            for share in self.shares
        }


PRESETS = {
    "small": Config(),
    "gpu": Config(("cifar100 on one GPU",), temperatures=()),
    "paper": Config(
        PAPER_PAIRS,
        temperatures=(1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0),
        shares=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
    ),
}
