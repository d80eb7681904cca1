"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass

import optax

from experiments.common.training import NetworkSpec, Optimizer, sgd_milestones
from jaxkd.checks import unknown_name

BAD_TEACHER, BAD_LABELS, CLEAN = "bad teacher", "bad labels", "clean"
FIXED = {"cross_entropy": 0.0, "fixed_0.2": 0.2, "fixed_0.5": 0.5, "fixed_0.9": 0.9}
ABLATIONS = {"tgeokd_sg_tg": ("SG", "TG"), "tgeokd_sg_tg_st": ("SG", "TG", "ST")}
ALL_LABELS = "cross_entropy_all"

PAIRS: dict[str, tuple[NetworkSpec, NetworkSpec]] = {
    "digits": (
        ("mlp", {"features": 64, "widths": (128,)}),
        ("mlp", {"features": 64, "widths": (24,)}),
    ),
    "cifar100": (
        ("cifar_resnet", {"depth": 32, "widths": (32, 64, 128, 256)}),
        ("shufflenet_v1", {}),
    ),
}
"""A teacher and a student, by name."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``.
        settings: tables: who has bad labels, if anyone.
        pair: a name of `PAIRS`: the teacher and the student.
        methods: the rows.
        train_examples: that teacher and students see; 0 for all that are left.
        validation_examples: held out for the controller, with true labels.
        corrupted: share of the bad labels that are drawn at random.
        temperature: of the teacher's loss.
        epochs: of a student.
        batch_size: of training and validation.
        optimizer: of the student, ``adam`` at a constant rate or ``sgd``.
        learning_rate: of a student.
        weight_decay: of ``sgd``.
        milestones: epochs after which the rate of ``sgd`` is a tenth.
        teacher_epochs: of the teacher.
        teacher_learning_rate: of the teacher.
        look_ahead: learning rate of the look-ahead step.
        outer_learning_rate: of the controller's AdamW.
        outer_weight_decay: likewise.
        evaluate_every: epochs between evaluations.
    """

    dataset: str = "digits"
    settings: tuple[str, ...] = (BAD_TEACHER, BAD_LABELS)
    pair: str = "digits"
    methods: tuple[str, ...] = (
        *FIXED,
        *("annealed", "wls", "ada", "frozen", "tgeokd", ALL_LABELS),
    )
    train_examples: int = 400
    validation_examples: int = 150
    corrupted: float = 0.3
    temperature: float = 2.0
    epochs: int = 60
    batch_size: int = 50
    optimizer: str = "adam"
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    teacher_epochs: int = 30
    teacher_learning_rate: float = 5e-3
    look_ahead: float = 0.1
    outer_learning_rate: float = 1e-2
    outer_weight_decay: float = 1e-3
    evaluate_every: int = 10

    def make_optimizer(self, learning_rate: float, epochs: int) -> Optimizer:
        """Return ``steps ->`` the optimizer of that name.

        Raises:
            ValueError: an unknown name.
        """
        if self.optimizer == "adam":
            return lambda steps: optax.adam(learning_rate)
        if self.optimizer == "sgd":
            return sgd_milestones(
                learning_rate, self.weight_decay, self.milestones, epochs
            )
        raise ValueError(unknown_name("optimizer", self.optimizer, ["adam", "sgd"]))


PRESETS = {
    "small": Config(),
    "paper": Config(
        dataset="tfds/cifar100",
        settings=(CLEAN,),
        pair="cifar100",
        methods=("cross_entropy", "fixed_0.9", *ABLATIONS, "tgeokd"),
        train_examples=0,
        validation_examples=5000,
        corrupted=0.0,
        temperature=4.0,
        epochs=240,
        batch_size=64,
        optimizer="sgd",
        learning_rate=0.01,
        weight_decay=5e-4,
        milestones=(150, 180, 210),
        teacher_epochs=240,
        teacher_learning_rate=0.05,
        outer_learning_rate=1e-3,
    ),
}
