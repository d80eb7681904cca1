"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass, replace

import optax

from experiments.baselines.networks import PAIRS
from experiments.common.training import NetworkSpec, Optimizer, sgd_milestones


@dataclass(frozen=True)
class Table:
    """One pair of networks on one data set.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``.
        student: the network that is deployed.
        teacher: the larger network, trained from the start along with it.
        train_examples: 0 for all.
        shrink: by which images are averaged down.
        epochs: to train for.
        batch_size: likewise.
        learning_rate: of Adam, or of SGD where there are milestones.
        weight_decay: of SGD.
        milestones: epochs after which the rate of SGD is a tenth; none for Adam.
        evaluate_every: epochs between evaluations.
        most_seeds: seeds beyond are left out.
    """

    dataset: str
    student: NetworkSpec
    teacher: NetworkSpec
    train_examples: int = 0
    shrink: int = 1
    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = (150, 180, 210)
    evaluate_every: int = 10
    most_seeds: int = 3

    def optimizer(self) -> Optimizer:
        """Return ``steps -> optimizer`` of both networks."""
        if self.milestones:
            return sgd_milestones(
                self.learning_rate, self.weight_decay, self.milestones, self.epochs
            )
        return lambda steps: optax.adam(self.learning_rate)


FASHION = Table(
    dataset="fashion_mnist",
    student=("cnn", {"channels": (8, 16)}),
    teacher=("cnn", {"channels": (32, 64, 128)}),
    train_examples=5000,
    shrink=2,
    epochs=15,
    learning_rate=3e-3,
    milestones=(),
    evaluate_every=5,
)
DIGITS = replace(
    FASHION,
    dataset="digits",
    student=("mlp", {"features": 64, "widths": (12,)}),
    teacher=("mlp", {"features": 64, "widths": (256, 256)}),
    train_examples=300,
    shrink=1,
    epochs=120,
    batch_size=50,
    evaluate_every=20,
    most_seeds=5,
)
PAPER_PAIRS = ("resnet56-resnet20", "resnet110-resnet32", "wrn40_2-wrn16_2")
TABLES = {
    "fashion": FASHION,
    "digits": DIGITS,
    **{
        pair: Table("tfds/cifar100", PAIRS[pair].student, PAIRS[pair].teacher)
        for pair in PAPER_PAIRS
    },
}
"""Pairs of networks and their data sets, by name."""

METHODS = ("cross_entropy", "dml", "rkl", "one_to_one", "bdkd", "inverted")


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        tables: names of `TABLES`.
        methods: the rows of every table.
        temperature: of all divergences and entropies.
        delta: the larger of BD-KD's weights.
        weight: λ of the divergences.
        mechanism: the table in whose networks single updates are compared; empty
            for none.
        mechanism_epochs: of training before those updates.
        mechanism_batches: how many updates, each from the same networks.
        mechanism_rate: learning rate of those updates, plain gradient descent.
    """

    tables: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    temperature: float = 2.0
    delta: float = 2.0
    weight: float = 1.0
    mechanism: str = ""
    mechanism_epochs: int = 60
    mechanism_batches: int = 20
    mechanism_rate: float = 0.1


PRESETS = {
    "small": Config(("fashion", "digits"), mechanism="digits"),
    "paper": Config(PAPER_PAIRS, methods=(*METHODS[:-1], "kdcl")),
}
