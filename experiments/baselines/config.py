"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass, replace

from experiments.common.classification import ImagesConfig
from experiments.common.configs import CIFAR_SGD, OptimizerConfig
from experiments.common.networks import PAPER_PAIRS


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        pairs: names of networks.PAIRS.
        methods: to run, ``method`` or ``pair/method``; empty for all that apply.
        train_examples: that the students see; the teacher sees all. 0 for all.
        task: the images, and how long students learn them.
        optimizer: of the students.
        teacher_epochs: of the teacher.
        teacher_optimizer: of the teacher.
        warmup_epochs: in which the weights rise of the methods whose weights rise.
        stage_one_epochs: of the methods that train in two stages.
    """

    pairs: tuple[str, ...] = ("mlp", "cnn")
    methods: tuple[str, ...] = ()
    train_examples: int = 100
    task: ImagesConfig = ImagesConfig(evaluate_every=1)
    optimizer: OptimizerConfig = OptimizerConfig("adam", 1e-2)
    teacher_epochs: int = 60
    teacher_optimizer: OptimizerConfig = OptimizerConfig("adam", 3e-3)
    warmup_epochs: int = 20
    stage_one_epochs: int = 30


SMALL = Config()
COSINE = replace(CIFAR_SGD, schedule="cosine", milestones=())
PRESETS = {
    "small": SMALL,
    "demo": replace(
        SMALL,
        teacher_epochs=30,
        methods=(
            *(f"mlp/{m}" for m in ("cross_entropy", "kd", "dist", "lskd", "crd")),
            *(f"cnn/{m}" for m in ("cross_entropy", "kd", "fitnets", "simkd")),
        ),
    ),
    "cifar": Config(
        pairs=("resnet20-resnet8", "resnet20-vit"),
        train_examples=1000,
        task=ImagesConfig(
            "cifar10",
            test_examples=2000,
            shrink=2,
            epochs=18,
            batch_size=64,
            evaluate_every=3,
        ),
        optimizer=COSINE,
        teacher_epochs=8,
        teacher_optimizer=COSINE,
        warmup_epochs=2,
        stage_one_epochs=4,
    ),
    "paper": Config(
        pairs=PAPER_PAIRS,
        train_examples=0,
        task=ImagesConfig("tfds/cifar100", epochs=240, batch_size=64, evaluate_every=1),
        optimizer=CIFAR_SGD,
        teacher_epochs=240,
        teacher_optimizer=CIFAR_SGD,
    ),
}
