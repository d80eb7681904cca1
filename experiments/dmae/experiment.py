"""DMAE: a pre-trained autoencoder of masked images teaches a smaller one's features.

Bai et al. 2022 (arXiv:2208.12256) pre-train a student as a masked autoencoder, and at
the same time pull one of its blocks to one of a larger autoencoder's, on the few
visible patches. They report it 1.2 points above distilling a fine-tuned teacher.

``small`` is digits, fine-tuned on 200 labels; ``gpu`` CIFAR-10; ``paper`` ImageNet,
ViT-L to ViT-B.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import optax

import jaxkd
from experiments.common.classification import (
    Classification,
    image_batch,
)
from experiments.common.configs import choose
from experiments.dmae.config import PRESETS, Config
from experiments.dmae.measures import PASS, reconstruction, teachers_pass
from experiments.dmae.networks import Sizes
from jaxkd import data
from jaxkd.methods import combine, cross_entropy, feature_align, mae
from jaxkd.network import Network
from jaxkd.papers.dmae import encoder_of, visible
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.paper import PaperValue
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, Run, Task, run_arms
from jaxkd.training import scale_by_layer
from jaxkd.types import Batch, Method, Program

declare(
    reconstruction=Metric("reconstruction", higher_is_better=False),
    gflop=Metric("GFLOP", higher_is_better=False),
    share=Metric("share of the whole", higher_is_better=False),
    predicted_share=Metric("predicted"),
)


PAPER = {
    f"imagenet2012/{row}": {"last_accuracy": PaperValue(value, where, checked)}
    for row, value, where, checked in (
        ("mae", 0.836, "MAE's own table, 1,600 epochs", False),
        ("dmae", 0.840, "abstract", True),
        ("dmae_mask95", 0.836, "abstract", True),
        ("dmae_mask98", 0.824, "abstract", True),
    )
}

CLAIMS = [
    *(
        contrast("dmae", other, "last_accuracy", setting=setting)
        for setting in ("digits", "cifar10", "imagenet2012")
        for other in ("mae", "dmae_finetuned")
    ),
    contrast("dmae", "scratch", "last_accuracy", setting="digits"),
    contrast("dmae", "dmae_l2", "last_accuracy", setting="digits"),
    # The same numbers, for the share of the work that blocks and tokens are.
    observed("first blocks", "<=", 0.0, "difference", setting=PASS),
    observed("first blocks", "<=", 0.1, "excess", setting=PASS),
]

ROWS: Mapping[str, Mapping[str, Any]] = {
    "mae": {"alpha": None},
    "dmae": {},
    "align_only": {"painting": 0.0},
    "dmae_l2": {"distance": "l2"},
    "dmae_finetuned": {},
    **{f"dmae_mask{p}": {"mask_ratio": p / 100} for p in (50, 88, 95, 98)},
}
"""What is other than in DMAE; ``dmae_finetuned`` has another teacher."""


def objective(
    config: Config,
    *,
    alpha: float | None = 1.0,
    painting: float = 1.0,
    mask_ratio: float = 0.75,
    distance: Any = "l1",
) -> Method:
    """Return a row's method; without alpha it needs no teacher."""
    painted = mae(mask_ratio, patch_size=config.student.patch)
    if alpha is None:
        return painted
    student, teacher = (f"block{layer}" for layer in config.layers)
    aligned = feature_align([student], [teacher], distance=distance)
    return combine((painting, painted), (alpha, aligned))


@dataclass(frozen=True)
class Trainer:
    """Both phases of a run's seed.

    Attributes:
        config: of the run.
        run: keeps what is trained.
        images: without labels.
        labelled: with labels.
        seed: of all training.
    """

    config: Config
    run: Run
    images: Classification
    labelled: Classification
    seed: int

    def pretrained(
        self, name: str, sizes: Sizes, method: Method, teacher: Network | None = None
    ) -> Arm:
        """Return a trained autoencoder."""
        images, network = self.images, sizes.autoencoder()
        if name == "teacher":
            images = replace(images, epochs=self.config.teacher_epochs)
        optimizer = self.config.pretraining.build(images)
        program = jaxkd.distill(network, teacher, method, optimizer)
        task = Task(f"{self.config.setting}/pre-training", images.batches, images.steps)
        return self.run.teacher(Arm(name, program, network), task, self.seed)

    def teacher(self) -> Arm:
        """Return the trained teacher."""
        alone = objective(self.config, alpha=None)
        return self.pretrained("teacher", self.config.teacher, alone)

    def taught(self, teacher: Arm) -> Network:
        """Return the trained teacher's first blocks."""
        variables = teacher.deployed.init(jax.random.key(0))
        first = self.config.teacher.first_blocks
        return first(self.config.stop, encoder_of(variables))

    def finetuned(self, name: str, sizes: Sizes, before: Arm | None) -> Arm:
        """Return the training of a classifier, from a trained autoencoder or none."""
        config, variables = self.config, None
        if before is not None:
            trained = before.deployed.init(jax.random.key(0))
            variables = encoder_of(trained)
        network, optimizer = (
            sizes.classifier(variables),
            config.finetuning.build(self.labelled),
        )
        if config.layer_decay < 1:
            scale = scale_by_layer(sizes.size[1], config.layer_decay)
            optimizer = optax.chain(optimizer, scale)
        method = cross_entropy(config.label_smoothing)
        program = jaxkd.distill(network, None, method, optimizer)
        if before is None:
            return Arm(name, program, network)
        painted = reconstruction(config, before.deployed, self.images)
        return Arm(
            name,
            program,
            network,
            measure=lambda *_: {"reconstruction": painted},
            seconds=before.seconds,
        )


def loaded(config: Config) -> tuple[Classification, Classification]:
    """Return the images of pre-training, and those with labels."""
    images = config.pretraining.task.load(config.pretraining.optimizer)
    tuning = config.finetuning
    labelled = tuning.task.load(tuning.optimizer).subset(config.labelled)
    if config.mix:
        moves = [labelled.transform] if labelled.transform else []
        mixed = data.EitherOf(
            data.Mixup(0.8, labelled.classes), data.CutMix(1.0, labelled.classes)
        )
        labelled = replace(labelled, transform=data.Compose((*moves, mixed)))
    return images, labelled


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield the teacher, the student from scratch, and the rows.

    All students of a seed see the same images and, at one share, the same masks.
    """
    rows = choose("method", config.methods, ROWS)
    images, labelled = loaded(config)
    trainer = Trainer(config, run, images, labelled, seed)
    task = replace(labelled.task(config.setting), input_shape=None)
    teacher = trainer.teacher()
    expert = run.teacher(
        trainer.finetuned("expert", config.teacher, teacher), task, seed
    )
    yield replace(expert, name="teacher"), task
    yield trainer.finetuned("scratch", config.student, None), task
    taught = trainer.taught(teacher)
    for name, changed in rows.items():
        method, source = objective(config, **changed), taught
        if name == "dmae_finetuned":
            source = config.teacher.first_blocks(
                config.stop, expert.deployed.init(jax.random.key(0))
            )
        needed = source if method.teacher_taps else None
        before = trainer.pretrained(name, config.student, method, needed)
        yield trainer.finetuned(name, config.student, before), task


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train all rows, and measure the teacher's pass."""
    found = run_arms(arms, config, seeds, run, anew=True)
    return found + run.part(PASS, partial(teachers_pass, config))


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return DMAE's pre-training, with the shapes of its batch."""
    sizes, epochs = config.student, config.pretraining.task.epochs
    images = config.pretraining.task
    teacher = config.teacher.plain().segment(None, config.stop)
    rate = config.pretraining.optimizer.rate(epochs, epochs)
    program = jaxkd.distill(
        sizes.autoencoder(), visible(teacher), objective(config), optax.adamw(rate)
    )
    batch = image_batch(images.batch_size, sizes.image, sizes.channels)
    return {"vit_l-vit_b": (program, batch)}


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    topology="v5e:8x8",
    seeds={"small": 3, "long": 3},
    varies=("teacher", "student", "order"),
)
