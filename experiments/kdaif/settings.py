"""What can be set of a run: networks, data, how labels are wrong, and the presets."""

from dataclasses import dataclass
from typing import Any

from experiments.common.classification import ImagesConfig
from experiments.common.configs import NetworkConfig, OptimizerConfig

NOISY, PSEUDO, CLEAN = SETTINGS = ("noisy labels", "pseudo-labels", "clean")
LEAVE_ONE_OUT = "leave one out"
WEIGHTS = ("released", "exp", "sigmoid", "linear", "topk", "gradients", "oracle")
ROUNDS: dict[str, Any] = {"rounds_s": "S", "rounds_t": "T", "rounds_ts": "TS"}
ADAM = OptimizerConfig("adam", 5e-3, schedule="constant")


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        settings: tables: which labels are wrong.
        rows: the weights, and the rounds that find them anew.
        pseudo_rows: those of them that the pseudo-labels' table has.
        teacher: the network to learn from.
        student: the network to train.
        task: the images, and how long students learn them.
        train_examples: that teacher and students see; 0 for all that are left.
        validation_examples: held out, with true labels, to find the influence on.
        labelled: of the pseudo-labels' table; the teacher labels the others.
        corrupted: share of the noisy labels that are drawn at random.
        temperature: of the teacher's loss.
        alpha: share of the label's loss.
        damping: of the inverse Hessian.
        rounds: into which a student's epochs are divided where weights are found anew.
        optimizer: of students.
        teacher_epochs: of the teacher.
        retrain_epochs: of the teacher in every round.
        teacher_optimizer: of the teacher.
        left_out: examples that a logistic regression is fitted without, one at a time;
            0 for no such check.
    """

    settings: tuple[str, ...] = (NOISY, PSEUDO)
    rows: tuple[str, ...] = ("uniform", *WEIGHTS, *ROUNDS)
    pseudo_rows: tuple[str, ...] = (
        *("uniform", "released", "sigmoid", "oracle", "rounds_ts"),
    )
    teacher: NetworkConfig = NetworkConfig("mlp", {"features": 64, "widths": (128,)})
    student: NetworkConfig = NetworkConfig("mlp", {"features": 64, "widths": (24,)})
    task: ImagesConfig = ImagesConfig("digits", epochs=60, evaluate_every=60)
    train_examples: int = 400
    validation_examples: int = 150
    labelled: int = 60
    corrupted: float = 0.3
    temperature: float = 2.0
    alpha: float = 0.5
    damping: float = 0.01
    rounds: int = 3
    optimizer: OptimizerConfig = ADAM
    teacher_epochs: int = 60
    retrain_epochs: int = 20
    teacher_optimizer: OptimizerConfig = ADAM
    left_out: int = 24


PRESETS = {
    "small": Config(),
    "paper": Config(
        settings=(CLEAN,),
        rows=("uniform", "released", "sigmoid", "rounds_s"),
        teacher=NetworkConfig("imagenet_resnet", {"depth": 50}),
        student=NetworkConfig("mobilenet_v2", {"width": 1.0, "form": "imagenet"}),
        task=ImagesConfig("tfds/cifar100_224", epochs=10, batch_size=64),
        train_examples=0,
        validation_examples=5000,
        corrupted=0.0,
        temperature=7.0,
        alpha=0.0,
        optimizer=OptimizerConfig("sgd", 0.01, schedule="constant"),
        teacher_epochs=5,
        retrain_epochs=1,
        teacher_optimizer=OptimizerConfig("sgd", 0.01, schedule="constant"),
        left_out=0,
    ),
}
