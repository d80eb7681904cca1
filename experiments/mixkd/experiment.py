"""MIX-KD: what Mixup does to a teacher, to a student, and to the temperature between.

Choi et al. 2023 (arXiv:2211.03946) mix the inputs of teacher, student or both, and find
that Mixup and distillation both smooth predictions: a teacher trained with Mixup
teaches worse, and a student learns best from few mixed examples at a low temperature.
Theirs mixes a tenth, and divides each example's logits by their deviation (MIXSTD).

``small`` takes 100 digits and 5,000 images of CIFAR-10 at half their resolution, each
with a teacher trained with and one trained without Mixup. ``paper`` is CIFAR-100.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification, image_batch
from experiments.common.configs import choose
from experiments.mixkd.settings import (
    MIXED_TEACHER,
    PAPER_PAIRS,
    PRESETS,
    ROWS,
    TABLES,
    Config,
    Row,
)
from jaxkd import data, distill
from jaxkd.evaluation.classification import accuracy
from jaxkd.evaluation.smoothness import smoothness_metrics
from jaxkd.losses import cross_entropy_loss
from jaxkd.methods import cross_entropy, mixstd
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.paper import paper_table
from jaxkd.reporting.quantities import NotComparable, cell, derived, values_of
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Program, deployed

declare(
    entropy=Metric("entropy"),
    mixed_entropy=Metric("entropy of mixed"),
    logit_deviation=Metric("logit deviation"),
    mixed_confidence=Metric("confidence of mixed %"),
    fgsm_accuracy=Metric("FGSM %", higher_is_better=True),
    noisy_accuracy=Metric("noisy %", higher_is_better=True),
)

GRID = "temperature and share"

PAPER = paper_table(
    "last_accuracy",
    PAPER_PAIRS[1:],
    {
        "teacher": "79.42 75.61 74.64",
        "cross_entropy": "72.50 73.26 70.36",
        "kd": "73.33 74.92 72.98",
    },
    where="table of RepDistiller's README",
    checked=True,
)
"""What others report of three of the pairs; the paper's own tables were not at hand."""


def spread(arm: str, setting: str):
    """Return the standard deviation of an arm's accuracy over seeds."""

    def read(records) -> float:
        values = list(values_of(records, arm, "last_accuracy", setting).values())
        if len(values) < 2:
            raise NotComparable("one seed has no spread")
        return float(np.std(values, ddof=1))

    return derived(f"{arm}'s spread over seeds", read, arm, setting)


ONE_ERROR = "one standard error of an earlier trial"
CLAIMS = [
    claim
    for setting in TABLES
    for claim in (
        contrast("mixstd_10", "kd", "last_accuracy", setting=setting),
        contrast(
            *("mixstd_10", "mixstd_full", "last_accuracy", 0.01, "non-inferiority"),
            setting=setting,
            because=ONE_ERROR,
        ),
        observed(
            spread("mixstd_10", setting),
            "<",
            spread("mixstd_full", setting),
            "last_accuracy",
            setting=setting,
        ),
        contrast(
            *("mixstd_10", "kd_t1_full", "last_accuracy", 0.005, "non-inferiority"),
            setting=setting,
            because=ONE_ERROR,
        ),
        contrast("kd_t1_full", "kd", "last_accuracy", setting=setting),
        contrast("kd", "kd_full", "last_accuracy", setting=setting),
        contrast("kd", "kd_from_mixup", "last_accuracy", setting=setting),
        contrast(
            cell("teacher", "mixed_entropy"),
            cell("teacher", "entropy"),
            "entropy",
            setting=setting,
            lower=False,
        ),
        contrast(
            *(MIXED_TEACHER, "teacher", "logit_deviation"), setting=setting, lower=True
        ),
    )
]


def teachers(name: str, run: Run, seed: int) -> dict[str, Arm]:
    """Return a table's teachers, without and with Mixup, trained once in a run."""
    table = TABLES[name]
    images = table.task.load(table.teacher_optimizer or table.optimizer)
    images = images.subset(table.teacher_examples)
    images = replace(images, epochs=table.teacher_epochs or images.epochs)
    network = table.pair.teacher.build(images.classes)
    found = {}
    for arm, row in (("teacher", Row()), (MIXED_TEACHER, Row(mixed=1.0))):
        mine = row.mixing(images)
        program = mine.distill(network, None, cross_entropy())
        found[arm] = run.teacher(Arm(arm, program, network), mine.task(name), seed)
    return found


def measured(
    images: Classification, network: Network, attack: float
) -> Callable[[Any, History], Values]:
    """Return what measures how smooth and how robust a network's predictions are.

    They are of the first thousand test images: as they are, all mixed in pairs, moved
    by ``attack`` along the sign of the loss's gradient (FGSM), and with twice as much
    noise.
    """
    size = min(1000, len(images.test))
    batch = images.test.take(np.arange(size))
    if images.test_transform is not None:
        batch = images.test_transform(batch, None)
    rng = np.random.default_rng(0)
    drawn = data.sample_mixup(rng, size, 1.0, per_example=True)
    mixed, _ = data.apply_mixup(batch["image"], batch["label"], drawn, images.classes)
    noise = (2 * attack * rng.normal(size=mixed.shape)).astype(np.float32)
    arrays = jax.device_put((batch["image"], mixed, noise, batch["label"]))

    @jax.jit
    def metrics(variables: Any, image: Any, mixed: Any, noise: Any, label: Any):
        def logits(x: Any) -> jax.Array:
            return network.apply(variables, x)[0].logits

        def loss(x: Any) -> jax.Array:
            return cross_entropy_loss(logits(x), label).sum()

        attacked = image + attack * jnp.sign(jax.grad(loss)(image))
        of_mixed = smoothness_metrics(logits(mixed))
        return {
            **smoothness_metrics(logits(image)),
            "mixed_entropy": of_mixed["entropy"],
            "mixed_confidence": of_mixed["confidence"],
            "fgsm_accuracy": accuracy(logits(attacked), label),
            "noisy_accuracy": accuracy(logits(image + noise), label),
        }

    def measure(state: Any, history: History) -> Values:
        return {k: float(v) for k, v in metrics(deployed(state), *arrays).items()}

    return measure


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield every table's teachers and students, and the grid's students."""
    rows = choose("row", config.rows, ROWS)
    for name, table in choose("table", config.tables, TABLES).items():
        if seed >= table.seeds:
            continue
        taught = teachers(name, run, seed)
        images = table.task.load(table.optimizer).subset(table.train_examples)
        student = table.pair.student.build(images.classes)
        for arm in taught.values():
            measure = measured(images, arm.deployed, table.attack)
            yield replace(arm, measure=measure), images.task(name)
        logits = {n: images.logits(arm.deployed) for n, arm in taught.items()}
        measure = measured(images, student, table.attack)
        mine = {row: rows[row] for row in table.rows or rows if row in rows}
        settings = {name: mine}
        if name == config.tables[0] and seed < config.grid_seeds:
            settings[GRID] = config.grid()
        for setting, students in settings.items():
            for label, row in students.items():
                teacher = taught[row.teacher].deployed if row.teacher else None
                mixed = row.mixing(images)
                method = row.method(config.gamma, config.alpha)
                program = mixed.distill(student, teacher, method)
                arm = Arm(label, program, student)
                if setting == name:
                    arm = replace(arm, measure=measure)
                yield arm, mixed.task(setting, logits.get(row.teacher))


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return MIXSTD's program of each table, for a batch with mixed labels."""
    found, classes = {}, 100
    for name in config.tables:
        table = TABLES[name]
        epochs, size = table.task.epochs, table.task.batch_size
        optimizer = table.optimizer.build(epochs, epochs)
        method = mixstd(config.gamma, config.alpha)
        program = distill(*table.pair.networks(classes), method, optimizer)
        label = jax.ShapeDtypeStruct((size, classes), jnp.float32)
        found[name] = program, {**image_batch(size, 32), "label": label}
    return found


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("teacher", "student", "order"),
)
