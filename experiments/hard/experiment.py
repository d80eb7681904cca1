"""HARD: augmentations that are learned, where student and teacher disagree.

Nix, Burg, Sinz 2023 (arXiv:2305.14890) train an augmentation beside the student: it
looks for images on which the two disagree while the teacher keeps its answer. They
report that a student so learns what plain distillation does not transfer, such as that
a digit stays the same when it moves, and is more accurate on the data and off it.

``small`` takes digits on a canvas, from a CNN to an MLP, ``cifar`` 5,000 images of
CIFAR-10 at half their resolution. ``gpu`` takes CIFAR-10 at its own, ``paper`` all of
it, with a ResNet-18 and a ViT.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optax

from experiments.common.classification import Classification, image_batch
from experiments.common.configs import choose
from experiments.hard.settings import SETTINGS, SHIFTS, Row, Setting, on_canvas
from jaxkd import data
from jaxkd.evaluation.classification import evaluator
from jaxkd.evaluation.robustness import robustness_evaluator
from jaxkd.methods import cross_entropy, from_loss, kd
from jaxkd.network import Network
from jaxkd.papers import hard
from jaxkd.papers.hard import Augmenter, elbo_loss, vae
from jaxkd.programs import distill
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Program

declare(
    shifted_accuracy=Metric("shifted %", higher_is_better=True),
    corruption_accuracy=Metric("corrupted %", higher_is_better=True),
    noise_accuracy=Metric("noise %", higher_is_better=True),
    blur_accuracy=Metric("blur %", higher_is_better=True),
    light_accuracy=Metric("light %", higher_is_better=True),
    digital_accuracy=Metric("digital %", higher_is_better=True),
    moved_accuracy=Metric("moved %", higher_is_better=True),
    disagreement_ratio=Metric("disagreement / clean KD"),
    drift=Metric("drift"),
    spread=Metric("spread"),
)

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("gaussian_blur", "defocus_blur", "motion_blur"),
    "light": ("brightness", "contrast"),
    "digital": ("pixelate", "jpeg", "elastic"),
    "moved": ("translate", "rotate"),
}
"""The corruptions, in the groups that tables show."""

TEMPERATURE = 2.0
LATENTS = 16
ELBO = from_loss(
    lambda student, teacher, batch: elbo_loss(student, batch["image"]),
    name="elbo",
    student_taps=("mean", "log_variance"),
)
WINDOW = (20, 400)
"""Steps over which disagreement and drift are averaged."""

EVERY = 20
"""Steps between two of the evaluations that look at them, on digits."""


@dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        settings: names of `SETTINGS`.
        rows: of every setting, where it has them.
    """

    settings: tuple[str, ...]
    rows: tuple[str, ...]


ROWS = tuple(dict.fromkeys(row for s in SETTINGS.values() for row in s.rows))
PRESETS = {
    "small": Config(("digits",), ROWS),
    "cifar": Config(
        ("cifar",), ("kd", "rand_augment", "untrained", "hard_affine", "hard_mix")
    ),
    "gpu": Config(("cifar32",), ROWS),
    "paper": Config(("cifar10-full",), ROWS),
}

CLAIMS = [
    contrast("kd", 0.15, "shifted_accuracy", setting="digits", lower=True),
    contrast("hard_affine", 0.5, "shifted_accuracy", setting="digits"),
    contrast(
        *("hard_affine", "kd", "last_accuracy", 0.025, "non-inferiority"),
        setting="digits",
        because="what shift tolerance may cost where no digit moves",
    ),
    contrast(
        *("hard_affine", 3.0, "disagreement_ratio"), setting="digits", lower=False
    ),
    contrast("hard_affine", 1.5, "drift", setting="digits", lower=True),
    contrast(
        *("hard_affine", "untrained", "shifted_accuracy", 0.05, "non-inferiority"),
        setting="digits",
        because="about two standard errors of an earlier trial",
    ),
    *(
        contrast("hard_affine", other, metric, setting="cifar")
        for other in ("kd", "rand_augment")
        for metric in ("last_accuracy", "corruption_accuracy")
    ),
    contrast("hard_affine", "untrained", "corruption_accuracy", setting="cifar"),
    *(
        contrast("hard_mix", "kd", metric, setting="cifar")
        for metric in ("last_accuracy", "corruption_accuracy")
    ),
]


def program(
    setting: Setting,
    row: Row,
    optimizer: optax.GradientTransformation,
    networks: tuple[Network, Network],
    augmenter: Augmenter | None,
) -> Program:
    """Return what trains a row's student.

    Args:
        setting: what the augmenter is trained by.
        row: how the student learns.
        optimizer: of the student.
        networks: student and teacher.
        augmenter: the row's.
    """
    student, teacher = networks
    if row.labels:
        return distill(student, None, cross_entropy(), optimizer)
    if augmenter is None:
        return distill(student, teacher, kd(TEMPERATURE), optimizer)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(setting.augmenter_rate)
    )
    return hard.hard(
        student,
        teacher,
        kd(TEMPERATURE),
        optimizer,
        augmenter,
        theirs if row.trained else None,
        schedule=row.schedule,
        thresholds=setting.thresholds,
        temperature=TEMPERATURE,
        consistency=row.consistency,
        replay=row.replay,
    )


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield every setting's teacher and students."""
    wanted = choose("row", config.rows, dict.fromkeys(ROWS))
    for name, setting in choose("setting", config.settings, SETTINGS).items():
        images = setting.load()
        student, network = setting.networks(images.classes)
        learnt = replace(
            images,
            epochs=setting.teacher_epochs,
            optimizer=setting.teacher_optimizer,
        )
        teacher = learnt.teacher(run, network, name, seed)
        some = images.subset(setting.train_examples)
        logits = images.logits(teacher.deployed)
        rows = {k: row for k, row in setting.rows.items() if k in wanted}
        own = replace(teacher, measure=measured(setting, images, teacher.deployed))
        yield own, replace(images.task(name), seeds=setting.seeds)
        measure = measured(setting, images, student)
        for row_name, row in rows.items():
            mine = replace(some, epochs=row.longer * some.epochs)
            augmenter = row.augmenter
            if row.radius:
                augmenter = latent_augmenter(run, learnt, row.radius, name, seed)
            optimizer = mine.optimizer.build(mine.steps, mine.epochs)
            pair = student, teacher.deployed
            trained = program(setting, row, optimizer, pair, augmenter)
            task = replace(mine.task(name, logits), seeds=setting.seeds)
            if setting.canvas:
                task = replace(task, evaluate_every=EVERY)
            yield Arm(row_name, trained, student, measure=measure), task


def latent_augmenter(
    run: Run, images: Classification, radius: float, name: str, seed: int
) -> Augmenter:
    """Return HARD-VAE in the latents of a VAE of the training images."""
    network = vae(int(np.prod(images.image_shape)), LATENTS)
    optimizer = images.optimizer.build(images.steps)
    arm = Arm("vae", distill(network, None, ELBO, optimizer), network)
    trained = run.teacher(arm, images.task(name), seed).deployed
    halves = trained.segment(stop="latent"), trained.segment("latent")
    return hard.latent(*halves, LATENTS, radius)


def measured(setting: Setting, images: Classification, network: Network):
    """Return what measures a network off the data, and what its augmenter did."""
    test: Any = images.test
    some = test.subset(setting.corrupted) if setting.corrupted else test
    robust = robustness_evaluator(
        network, some, severities=setting.severities, transform=images.test_transform
    )
    digits = data.digits().test if setting.canvas else None
    moved = (
        []
        if digits is None
        else [evaluator(network, on_canvas(digits, shift)) for shift in SHIFTS]
    )

    def measure(state: Any, history: History) -> Values:
        found = robust(state)
        values = {"corruption_accuracy": found["corruption_accuracy"]}
        for group, names in GROUPS.items():
            of = [found[f"{name}_accuracy"] for name in names]
            values[f"{group}_accuracy"] = float(np.mean(of))
        if moved:
            of = [test(state)["accuracy"] for test in moved]
            values["shifted_accuracy"] = float(np.mean(of))
        if "train_disagreement" in history[-1]:
            values |= play(history)
        return values

    return measure


def play(history: History) -> Mapping[str, float]:
    """Return what the augmenter did, on average over `WINDOW`."""
    seen = [x for x in history if WINDOW[0] <= x["step"] <= WINDOW[1]] or history
    mean = {
        name: float(np.mean([entry[f"train_{name}"] for entry in seen]))
        for name in ("disagreement", "clean_kd", "drift", "spread")
    }
    return {
        "disagreement_ratio": mean["disagreement"] / mean["clean_kd"],
        "drift": mean["drift"],
        "spread": mean["spread"],
    }


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return HARD-Affine's program of each setting, with the shapes of its batch."""
    found = {}
    for name in config.settings:
        setting = SETTINGS[name]
        row, optimizer = setting.rows["hard_affine"], setting.optimizer.build(1)
        made = program(setting, row, optimizer, setting.networks(10), row.augmenter)
        side = 32 // setting.images.shrink
        found[name] = made, image_batch(setting.images.batch_size, side)
    return found


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    full_scale=full_scale,
    varies=("teacher", "student", "order"),
)
