"""OFA-KD's settings: pairs of networks of different families, and their recipes."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common.classification import Classification, ImagesConfig
from experiments.common.configs import NetworkConfig, OptimizerConfig, choose
from jaxkd import data
from jaxkd.methods.modules.exits import split_stages
from jaxkd.reporting.tables import PaperValue


@dataclass(frozen=True)
class TimmConfig(OptimizerConfig):
    """An optimizer as timm makes it, which the authors train by.

    Only matrices and kernels decay; momentum is Nesterov's; the rate decays from the
    first step on, under the warm-up too.

    Attributes:
        warmup_rate: where the warm-up begins.
    """

    warmup_rate: float = 0.0

    def rate(self, steps: int, epochs: int = 1) -> optax.Schedule:
        """Return the learning rate by the step."""
        decay = OptimizerConfig.rate(replace(self, warmup=0.0), steps, epochs)
        if not self.warmup:
            return decay
        warmup = round(self.warmup * steps)
        rise = optax.linear_schedule(self.warmup_rate, self.learning_rate, warmup)

        def rate(step: Any) -> Any:
            return jnp.where(step < warmup, rise(step), decay(step))

        return rate

    def build(self, steps: int, epochs: int = 1) -> optax.GradientTransformation:
        """Return the optimizer of a run."""

        def matrices(params):
            return jax.tree.map(lambda x: x.ndim > 1, params)

        rate, decay = self.rate(steps, epochs), self.weight_decay
        makers = {
            "adamw": lambda: optax.adamw(rate, weight_decay=decay, mask=matrices),
            "sgd": lambda: optax.chain(
                optax.add_decayed_weights(decay, matrices),
                optax.sgd(rate, momentum=0.9, nesterov=True),
            ),
        }
        clip = optax.clip_by_global_norm(self.clip) if self.clip else optax.identity()
        return optax.chain(clip, choose("optimizer", [self.name], makers)[self.name]())


@dataclass(frozen=True)
class Setting:
    """A data set, a teacher and a student of another family.

    Attributes:
        task: the images, and how long students learn them.
        teacher: the network to learn from.
        student: the network to train.
        taps: the student's stages, shallow to deep.
        optimizer: of the students.
        gamma: of the one-for-all loss.
        label_smoothing: of the cross-entropy.
        transform: of training batches, after the task's.
        average: decay of the moving average that is tested; 0 for none.
        train_examples: that the students see; 0 for all.
        teacher_epochs: of the teacher, which sees all; 0 reads it from its folder.
        teacher_optimizer: of the teacher; None for the students'.
        methods: that are run.
        seeds: that are run at most; None for all.
    """

    task: ImagesConfig
    teacher: NetworkConfig
    student: NetworkConfig
    taps: tuple[str, ...]
    optimizer: TimmConfig
    gamma: float = 1.2
    label_smoothing: float = 0.0
    transform: data.Transform | None = None
    average: float = 0.0
    train_examples: int = 0
    teacher_epochs: int = 0
    teacher_optimizer: TimmConfig | None = None
    methods: tuple[str, ...] = ("cross_entropy", "kd", "fitnets", "ofakd")
    seeds: int | None = None

    def load(self, epochs: int = 0) -> Classification:
        """Return all training images, to learn for so many epochs or the task's."""
        images = self.task.load(self.optimizer)
        steps = tuple(t for t in (images.transform, self.transform) if t is not None)
        transform = data.Compose(steps) if steps else None
        return replace(images, transform=transform, epochs=epochs or images.epochs)

    @property
    def teacher_name(self) -> str:
        """The name of the folder of a teacher that is not trained here."""
        size, dataset = self.teacher.arguments["size"], self.task.dataset
        return f"{self.teacher.name}-{size}-{dataset.removeprefix('tfds/')}"


STAGES = tuple(f"stage{i}" for i in range(1, 5))
BLOCKS = tuple(f"block{i}" for i in range(4))
TWELVE = tuple(f"block{blocks[-1]}" for blocks in split_stages(12))
HIDDEN = tuple(f"hidden{i}" for i in range(4))

CNN = NetworkConfig("cnn", {"channels": (32, 64, 128, 128)})
OTHER_CNN = NetworkConfig("cnn", {"channels": (16, 32, 64, 64)})
MLP = NetworkConfig("mlp", {"features": 64, "widths": (64, 64, 64, 64)})
DIGITS = Setting(
    ImagesConfig("digits", epochs=60, evaluate_every=5),
    CNN,
    MLP,
    HIDDEN,
    TimmConfig("adamw", 3e-3, 0.05),
    transform=data.PadCrop(1),
    teacher_epochs=60,
)

HALF_SIZE = {"image_size": 16, "patch_size": 4}
CIFAR10 = Setting(
    ImagesConfig("cifar10", 2000, 2, epochs=6, batch_size=64, evaluate_every=3),
    NetworkConfig("cifar_resnet", {"depth": 20}),
    NetworkConfig("vit", {"size": (64, 4, 4), **HALF_SIZE}),
    BLOCKS,
    TimmConfig("adamw", 1e-3, 0.05),
    train_examples=5000,
    teacher_epochs=4,
    teacher_optimizer=TimmConfig("sgd", 0.05, 5e-4),
    methods=("cross_entropy", "kd", "ofakd"),
    seeds=3,
)

TEACHERS = {
    "swin_t": NetworkConfig("swin", {"size": "tiny"}),
    "vit_s": NetworkConfig("vit", {"size": "small"}),
    "mixer_b16": NetworkConfig("mlp_mixer", {"size": "base"}),
    "convnext_t": NetworkConfig("convnext", {"size": "tiny"}),
    "deit_t": NetworkConfig("vit", {"size": "tiny"}),
}
CONVOLUTIONAL = {
    "resnet18": (NetworkConfig("imagenet_resnet", {"depth": 18}), STAGES),
    "mobilenet_v2": (
        NetworkConfig("mobilenet_v2", {"width": 1.0, "form": "imagenet"}),
        (*STAGES[:3], "final"),
    ),
}
PATCHED = {
    "deit_t": (NetworkConfig("vit", {"size": "tiny"}), TWELVE),
    "swin_p": (NetworkConfig("swin", {"size": "pico"}), STAGES),
    "resmlp_s12": (NetworkConfig("resmlp", {"size": "s12"}), TWELVE),
}

# One TPU v5e:2x4 has the eight devices of the authors' machine.
SGD = TimmConfig("sgd", 0.05, 2e-3, warmup=3 / 300, final=0.02, warmup_rate=1e-4)
STEPS = TimmConfig(
    "sgd", 0.1, 1e-4, "steps", (30, 60, 90), warmup=3 / 100, warmup_rate=1e-4
)
ADAMW = TimmConfig(
    "adamw", 5e-4, 0.05, warmup=20 / 300, final=0.02, clip=5.0, warmup_rate=5e-7
)


def _full(dataset: str, pair: str, gamma: float = 1.2) -> Setting:
    """Return the authors' recipe for a pair, by its data set and the student's kind."""
    teacher, student = pair.split("-")
    network, taps = (CONVOLUTIONAL | PATCHED)[student]
    convolutional, imagenet = student in CONVOLUTIONAL, dataset == "imagenet2012"
    classes = 1000 if imagenet else 100
    if convolutional:
        optimizer, transform = STEPS if imagenet else SGD, None
    else:
        optimizer = replace(ADAMW, final=0.002) if imagenet else ADAMW
        transform = data.EitherOf(data.Mixup(0.8, classes), data.CutMix(1.0, classes))
    short = convolutional and imagenet
    task = ImagesConfig(
        f"tfds/{dataset}",
        augment=False,
        epochs=100 if short else 300,
        batch_size=8 * (64 if short else 128),
        evaluate_every=1,
    )
    return Setting(
        task,
        TEACHERS[teacher],
        network,
        taps,
        optimizer,
        gamma,
        label_smoothing=0.1,
        transform=transform,
        average=0.99996 if imagenet and not convolutional else 0.0,
    )


SMALL = {
    "digits-500": replace(DIGITS, train_examples=500),
    "digits-200": replace(DIGITS, train_examples=200),
    "resnet20-vit": CIFAR10,
    "resnet20-resmlp": replace(
        CIFAR10, student=NetworkConfig("resmlp", {"size": (64, 4), **HALF_SIZE})
    ),
}
# γ where the authors give it.
CIFAR100 = {
    pair: _full("cifar100_224", pair, 1.0 if pair == "swin_t-resnet18" else 1.2)
    for pair in (
        "swin_t-resnet18",
        "vit_s-mobilenet_v2",
        "mixer_b16-resnet18",
        "convnext_t-deit_t",
        "convnext_t-swin_p",
        "convnext_t-resmlp_s12",
    )
}
IMAGENET = {
    f"imagenet/{pair}": _full("imagenet2012", pair, gamma)
    for pair, gamma in (
        ("deit_t-resnet18", 1.5),
        ("swin_t-resnet18", 1.2),
        ("convnext_t-deit_t", 1.2),
        ("swin_t-resmlp_s12", 1.2),
    )
}
SETTINGS = SMALL | CIFAR100 | IMAGENET

TABLES = {
    ("", "cross_entropy fitnets ofakd"): {
        "swin_t-resnet18": "74.01 78.87 80.54",
        "vit_s-mobilenet_v2": "73.68 73.54 78.45",
        "convnext_t-deit_t": "68.00 60.78 75.76",
        "convnext_t-resmlp_s12": "66.56 45.47 81.22",
    },
    ("", "fitnets"): {"convnext_t-swin_p": "24.06"},
    ("imagenet/", "kd ofakd"): {
        "swin_t-resnet18": "71.14 71.85",
        "convnext_t-deit_t": "74.00 74.41",
        "swin_t-resmlp_s12": "76.67 77.31",
    },
}
PAPER = {
    f"{prefix}{pair}/{method}": {
        "best_accuracy": PaperValue(
            round(float(value) / 100, 4), "its table, as others quote it", checked=False
        )
    }
    for (prefix, methods), table in TABLES.items()
    for pair, row in table.items()
    for method, value in zip(methods.split(), row.split(), strict=True)
}
