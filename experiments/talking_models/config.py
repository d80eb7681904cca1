"""Both networks, what they talk about, and the settings by name."""

from dataclasses import dataclass, field

from experiments.common.classification import ImagesConfig
from experiments.common.configs import NetworkConfig, OptimizerConfig


@dataclass(frozen=True)
class Talk:
    """How messages are exchanged.

    Attributes:
        taps: the student's lower and higher state.
        teacher_taps: the teacher's.
        message: width of a message.
        hidden: of a codec.
        weight: of each of the three losses.
    """

    taps: tuple[str, str] = ("hidden0", "hidden2")
    teacher_taps: tuple[str, str] = ("hidden1", "hidden3")
    message: int = 32
    hidden: int = 64
    weight: float = 0.5


def _mlp(*widths: int) -> NetworkConfig:
    return NetworkConfig("mlp", {"widths": widths})


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        setting: the table's name.
        methods: rows.
        teacher: of the teacher's task.
        student: of the downstream task.
        talk: between them.
        task: the images, and how long the student learns them.
        optimizer: of the student.
        groups: the downstream label is the label modulo this; 0 for the label itself.
        labelled: downstream examples; 0 for all.
        shift: pixels by which downstream images are moved.
        teacher_epochs: of the teacher's training on its own task; 0 to read it.
        teacher_optimizer: of that.
        teacher_folder: holds a trained teacher, as transformers or
            ``jaxkd.interop.save_pretrained`` write it.
    """

    setting: str = "digits"
    methods: tuple[str, ...] = (
        *("scratch", "fitnets", "no_interaction", "td1", "td2"),
        *("td1_fixed_answer", "only_interaction"),
    )
    teacher: NetworkConfig = field(default_factory=lambda: _mlp(128, 128, 128, 128))
    student: NetworkConfig = field(default_factory=lambda: _mlp(48, 48, 48))
    talk: Talk = Talk()
    task: ImagesConfig = ImagesConfig(epochs=150, evaluate_every=150)
    optimizer: OptimizerConfig = OptimizerConfig("adamw", 2e-3, 1e-2, "constant")
    groups: int = 3
    labelled: int = 100
    shift: int = 1
    teacher_epochs: int = 60
    teacher_optimizer: OptimizerConfig = OptimizerConfig("adam", 1e-3)
    teacher_folder: str = ""


PRESETS = {
    "small": Config(),
    # CIFAR-10 in patches of 4 pixels, for one GPU; the teacher is trained first.
    "gpu": Config(
        setting="cifar10",
        teacher=NetworkConfig(
            "vit", {"size": (192, 9, 3), "image_size": 32, "patch_size": 4}
        ),
        student=NetworkConfig(
            "vit", {"size": (96, 4, 3), "image_size": 32, "patch_size": 4}
        ),
        # Both see 65 tokens.
        talk=Talk(("block1", "block3"), ("block2", "block8"), 64, 128),
        task=ImagesConfig("cifar10", epochs=30, batch_size=250, evaluate_every=10),
        optimizer=OptimizerConfig("adamw", 1e-3, 0.05, warmup=0.1),
        groups=0,
        labelled=5000,
        shift=0,
        teacher_epochs=50,
        teacher_optimizer=OptimizerConfig("adamw", 1e-3, 0.05, warmup=0.1),
    ),
    "paper": Config(
        setting="cifar100",
        teacher=NetworkConfig("vit", {"size": "base"}),
        student=NetworkConfig("vit", {"size": "tiny"}),
        # Both see 197 tokens: codecs work token by token.
        talk=Talk(("block3", "block11"), ("block3", "block11"), 128, 256),
        task=ImagesConfig(
            "tfds/cifar100_224",
            augment=False,
            epochs=100,
            batch_size=512,
            evaluate_every=5,
        ),
        optimizer=OptimizerConfig("adamw", 1e-3, 0.05, warmup=0.05),
        groups=0,
        labelled=0,
        shift=0,
        teacher_epochs=0,
        teacher_folder="teachers/vit-base-patch16-224",
    ),
}
