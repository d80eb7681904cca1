"""The configurations: digits with a weak and a better teacher, and CIFAR-10."""

from dataclasses import dataclass

from experiments.common.classification import ImagesConfig
from experiments.common.configs import NetworkConfig, OptimizerConfig

NETWORKS = {
    "mlp32": NetworkConfig("mlp", {"features": 64, "widths": (32,)}),
    "mlp256": NetworkConfig("mlp", {"features": 64, "widths": (256,)}),
    "resnet50": NetworkConfig("imagenet_resnet", {"depth": 50, "stem": "cifar"}),
    "mobilenet": NetworkConfig("mobilenet_v2"),
}
"""Students and teachers by name."""

SETTINGS = {
    "teacher of 40 labels": (4, 3),
    "teacher of 150 labels": (15, 6),
    "teacher of 5,000 labels": (500, 500),
}
"""The tables: labels a class that the teacher was trained on, and of them the
student's."""


@dataclass(frozen=True)
class Config:
    """What is asked for and trained.

    Attributes:
        task: the images.
        test_examples: drawn anew for every seed from all images; 0 for the data set's
            own test part.
        validation: labelled examples that say how often the teacher is wrong.
        settings: the tables.
        rules: the rows; empty for all.
        teacher: its network.
        student: its network, trained from new weights in every round.
        optimizer: of both.
        steps: of the teacher, and of the student in every round.
        rounds: of asking.
        queries: that the teacher is asked in a round.
        games: random ones that are compared with a linear program, for each seed.
    """

    task: ImagesConfig = ImagesConfig(batch_size=64)
    test_examples: int = 500
    validation: int = 100
    settings: tuple[str, ...] = ("teacher of 40 labels", "teacher of 150 labels")
    rules: tuple[str, ...] = ()
    teacher: str = "mlp256"
    student: str = "mlp32"
    optimizer: OptimizerConfig = OptimizerConfig("adamw", 1e-2, 0.01, "constant")
    steps: int = 250
    rounds: int = 5
    queries: int = 40
    games: int = 20


PRESETS = {
    "small": Config(),
    "paper": Config(
        task=ImagesConfig("tfds/cifar10", batch_size=128),
        test_examples=0,
        validation=1000,
        settings=("teacher of 5,000 labels",),
        teacher="resnet50",
        student="mobilenet",
        optimizer=OptimizerConfig("adam", 1e-3, 0.0, "constant"),
        steps=40_000,
        rounds=5,
        queries=4000,
        games=0,
    ),
}
