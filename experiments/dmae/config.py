"""How both phases are trained, and the settings by name."""

from dataclasses import dataclass, replace

import optax

from experiments.common.classification import Classification, ImagesConfig
from experiments.common.configs import OptimizerConfig
from experiments.dmae.networks import Sizes
from jaxkd.training import decay_mask


@dataclass(frozen=True)
class Phase:
    """How a phase is trained.

    Attributes:
        task: the images, and how long they are learnt.
        optimizer: AdamW, without decay of biases and norms.
        momentum: of the optimizer's second moments.
    """

    task: ImagesConfig
    optimizer: OptimizerConfig
    momentum: float = 0.999

    def build(self, images: Classification) -> optax.GradientTransformation:
        """Return the optimizer."""
        rate = self.optimizer.rate(images.steps)
        decay = self.optimizer.weight_decay
        return optax.adamw(rate, b2=self.momentum, weight_decay=decay, mask=decay_mask)


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        setting: the table's name.
        methods: rows, names of `ROWS`.
        teacher: its sizes.
        student: likewise.
        layers: the aligned blocks of student and teacher, from 0.
        pretraining: on images alone.
        teacher_epochs: of the teacher's pre-training.
        finetuning: on labels.
        labelled: examples with labels; 0 for all.
        layer_decay: of the learning rate in fine-tuning.
        label_smoothing: in fine-tuning.
        mix: whether fine-tuning mixes images.
    """

    setting: str
    methods: tuple[str, ...]
    teacher: Sizes
    student: Sizes
    layers: tuple[int, int]
    pretraining: Phase
    teacher_epochs: int
    finetuning: Phase
    labelled: int = 0
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    mix: bool = False

    @property
    def stop(self) -> str:
        """The teacher's aligned block."""
        return f"block{self.layers[1]}"


DIGITS = Config(
    "digits",
    (
        *("mae", "dmae", "align_only", "dmae_l2", "dmae_finetuned"),
        *("dmae_mask50", "dmae_mask88"),
    ),
    teacher=Sizes((48, 4, 4), (48, 1, 4), image=8, patch=2, channels=1, classes=10),
    student=Sizes((32, 2, 4), (32, 1, 4), image=8, patch=2, channels=1, classes=10),
    layers=(1, 2),
    pretraining=Phase(
        ImagesConfig("digits", epochs=40, batch_size=125),
        OptimizerConfig("adamw", 3e-3, 1e-4),
    ),
    teacher_epochs=200,
    finetuning=Phase(
        ImagesConfig("digits", epochs=40, batch_size=50, evaluate_every=40),
        OptimizerConfig("adamw", 1e-3, 1e-4),
    ),
    labelled=200,
)


def _longer(phase: Phase, epochs: int) -> Phase:
    """Return a phase of as many epochs, evaluated at its end."""
    task = replace(phase.task, epochs=epochs, evaluate_every=epochs)
    return replace(phase, task=task)


PRESETS = {
    "small": DIGITS,
    "long": replace(
        DIGITS,
        methods=("mae", "dmae", "dmae_l2", "dmae_finetuned"),
        pretraining=_longer(DIGITS.pretraining, 100),
        finetuning=_longer(DIGITS.finetuning, 250),
    ),
    "gpu": replace(
        DIGITS,
        setting="cifar10",
        teacher=Sizes((256, 8, 8), (128, 2, 4), image=32, patch=4, classes=10),
        student=Sizes((128, 6, 4), (128, 2, 4), image=32, patch=4, classes=10),
        layers=(4, 5),
        pretraining=Phase(
            ImagesConfig("cifar10", epochs=50, batch_size=500),
            OptimizerConfig("adamw", 1.5e-3, 0.05, warmup=0.1),
            momentum=0.95,
        ),
        teacher_epochs=200,
        finetuning=Phase(
            ImagesConfig("cifar10", epochs=30, batch_size=250, evaluate_every=30),
            OptimizerConfig("adamw", 1e-3, 0.05, warmup=0.1),
        ),
        labelled=5000,
    ),
    "paper": Config(
        "imagenet2012",
        ("mae", "dmae", "dmae_finetuned", "dmae_mask95", "dmae_mask98"),
        teacher=Sizes((1024, 24, 16), (512, 8, 16)),
        student=Sizes((768, 12, 12), (512, 8, 16), drop_path=0.15),
        layers=(8, 17),
        pretraining=Phase(
            ImagesConfig(
                "tfds/imagenet2012_wide", augment=False, batch_size=4096, epochs=100
            ),
            OptimizerConfig("adamw", 2.4e-3, 0.05, warmup=0.2),
            momentum=0.95,
        ),
        teacher_epochs=1600,
        finetuning=Phase(
            ImagesConfig(
                "tfds/imagenet2012",
                augment=False,
                batch_size=1024,
                epochs=100,
                evaluate_every=1,
            ),
            OptimizerConfig("adamw", 2e-3, 0.05, warmup=0.2),
        ),
        layer_decay=0.75,
        label_smoothing=0.1,
        mix=True,
    ),
}
