"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass, replace

from experiments.baselines.networks import PAPER_PAIRS


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``.
        pairs: names of networks.PAIRS.
        methods: to run, ``method`` or ``pair/method``; empty for all that apply.
        train_examples: that the students see; the teacher sees all. 0 for all.
        test_examples: that all are tested on; 0 for all.
        shrink: by which images are averaged down.
        augment: random shifts and mirroring; for data sets of uint8 images.
        epochs: of a student.
        evaluate_every: epochs between evaluations.
        batch_size: of students and teachers.
        optimizer: ``adam``, or ``sgd`` with momentum 0.9.
        learning_rate: of a student.
        weight_decay: of ``sgd``.
        milestones: epochs after which the rate is a tenth; empty for a cosine to 0.
        teacher_epochs: of the teacher.
        teacher_learning_rate: of the teacher.
        warmup_epochs: in which the weights rise of the methods whose weights rise.
        stage_one_epochs: of the methods that train in two stages.
    """

    dataset: str = "digits"
    pairs: tuple[str, ...] = ("mlp", "cnn")
    methods: tuple[str, ...] = ()
    train_examples: int = 100
    test_examples: int = 0
    shrink: int = 1
    augment: bool = False
    epochs: int = 200
    evaluate_every: int = 1
    batch_size: int = 50
    optimizer: str = "adam"
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    teacher_epochs: int = 60
    teacher_learning_rate: float = 3e-3
    warmup_epochs: int = 20
    stage_one_epochs: int = 30


SMALL = Config()
PAPER_PROTOCOL = Config(
    dataset="tfds/cifar100",
    pairs=PAPER_PAIRS,
    train_examples=0,
    augment=True,
    epochs=240,
    batch_size=64,
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=5e-4,
    milestones=(150, 180, 210),
    teacher_epochs=240,
    teacher_learning_rate=0.05,
)
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
    "cifar": replace(
        PAPER_PROTOCOL,
        dataset="cifar10",
        pairs=("resnet20-resnet8", "resnet20-vit"),
        train_examples=1000,
        test_examples=2000,
        shrink=2,
        epochs=18,
        evaluate_every=3,
        milestones=(),
        teacher_epochs=8,
        warmup_epochs=2,
        stage_one_epochs=4,
    ),
    "paper": PAPER_PROTOCOL,
}
