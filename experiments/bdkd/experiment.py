"""BD-KD: balanced divergences between a student and a teacher that learn together.

Amara et al. 2022 (arXiv:2212.12965) train a large and a small network together. The
small one gets both the forward and the reverse KL, weighed example by example by which
network is surer. They report its accuracy above, and its calibration error below, those
of other online distillation.

``small`` takes 5,000 images of Fashion-MNIST at half their resolution, and 300 digits;
on the digits it also compares what single updates do to the entropies. ``paper`` is
CIFAR-100 with three pairs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bdkd.config import PAPER_PAIRS, TABLES, Config, Table
from experiments.bdkd.config import PRESETS as PRESETS
from experiments.common.classification import shrunk
from experiments.common.training import (
    Task,
    build,
    image_batch,
    train_students,
    transforms,
)
from jaxkd import data, distill, networks, training
from jaxkd.checks import unknown_name
from jaxkd.evaluation.classification import accuracy, example_labels, predictor
from jaxkd.losses import (
    bdkd_loss,
    cross_entropy_loss,
    kd_loss,
    prediction_entropy,
    reverse_kd_loss,
)
from jaxkd.methods import bdkd, cross_entropy, from_loss, kdcl
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Method, Program

SLICE = "v5e:2x4"
MECHANISM = "single updates"
TAPS = ("0.logits", "1.logits")


CLAIMS = [
    # The pairs of the mechanism are batches, not seeds.
    *(
        contrast("bdkd", "one_to_one", metric, setting=MECHANISM, lower=False)
        for metric in ("softening", "sharpening")
    ),
    *(
        contrast(
            "bdkd",
            reference,
            metric,
            margin,
            "non-inferiority",
            setting=setting,
            because=because,
        )
        for setting in (*PRESETS["small"].tables, *PAPER_PAIRS)
        for reference, metric, margin, because in (
            ("dml", "entropy_gap", 0.01, "a tenth of DML's gap on Fashion-MNIST"),
            ("dml", "last_accuracy", 0.005, "a standard error of an earlier trial"),
            ("cross_entropy", "ece", 0.0025, "a standard error of an earlier trial"),
        )
    ),
]


@dataclass(frozen=True)
class Pair:
    """Two networks that learn together.

    Attributes:
        both: the ensemble, student first.
        student: the ensemble that answers as its student.
        teacher: the ensemble that answers as its teacher.
    """

    both: Network
    student: Network
    teacher: Network

    @classmethod
    def of(cls, table: Table, classes: int) -> "Pair":
        """Return a table's networks."""
        members = [build(spec, classes) for spec in (table.student, table.teacher)]
        both = networks.ensemble(members, mean="logits")
        return cls(both, *(networks.with_logits(both, tap) for tap in TAPS))


def fixed_weights(name: str, config: Config, forward: float, reverse: float) -> Method:
    """Return mutual learning whose student weighs the two KLs alike in all examples."""

    def loss(student, teacher, batch):
        z_s, z_t = (student.features[tap] for tap in TAPS)
        mixed = forward * kd_loss(z_s, z_t, config.temperature)
        mixed += reverse * reverse_kd_loss(z_s, z_t, config.temperature)
        own = sum(cross_entropy_loss(z, batch["label"]) for z in (z_s, z_t))
        return own + config.weight * (mixed + kd_loss(z_t, z_s, config.temperature))

    return from_loss(loss, name=name, student_taps=TAPS)


def objectives(config: Config) -> dict[str, Method]:
    """Return the methods that train both networks, at one temperature and weight."""
    balanced = (config.temperature, config.delta, config.weight)
    return {
        "dml": fixed_weights("dml", config, 1.0, 0.0),
        "rkl": fixed_weights("rkl", config, 0.0, 1.0),
        "one_to_one": fixed_weights("one_to_one", config, 1.0, 1.0),
        "bdkd": bdkd(*balanced),
        "inverted": bdkd(*balanced, invert=True),
        "kdcl": kdcl(2, temperature=config.temperature, weight=config.weight),
    }


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train all methods' pairs of every table, and compare single updates."""
    known = ["cross_entropy", *objectives(config)]
    for method in config.methods:
        if method not in known:
            raise ValueError(unknown_name("method", method, known))
    records = []
    for name in config.tables:
        if name not in TABLES:
            raise ValueError(unknown_name("table", name, TABLES))
        table = TABLES[name]
        task = make_task(name, table)
        records += run_table(config, table, task, seeds[: table.most_seeds], run)
        if name == config.mechanism:
            records += run.part(
                MECHANISM,
                lambda folder, table=table, task=task: single_updates(
                    config, table, task
                ),
            )
    return records


def make_task(name: str, table: Table) -> Task:
    """Return a table's data and optimizer."""
    dataset = data.load(table.dataset)
    train: Any = dataset.train
    test: Any = dataset.test
    if table.train_examples:
        train = train.subset(table.train_examples)
    if table.shrink > 1:
        train, test = (shrunk(source, table.shrink) for source in (train, test))
    augmented, plain = transforms(dataset, augment=True)
    return Task(
        setting=name,
        train=train,
        test=test,
        epochs=table.epochs,
        batch_size=table.batch_size,
        optimizer=table.optimizer(),
        transform=augmented,
        test_transform=plain,
        evaluate_every=table.evaluate_every,
    )


def run_table(
    config: Config, table: Table, task: Task, seeds: Sequence[int], run: Run
) -> list[Record]:
    """Return one pair's records."""
    pair = Pair.of(table, task.train.classes)
    student = build(table.student, task.train.classes)
    methods, records = objectives(config), []
    for name in config.methods:
        if name == "cross_entropy":
            program, deployed = task.distill(student, None, cross_entropy()), student
            measure = measured(config, task, student, None)
        else:
            program = task.distill(pair.both, None, methods[name])
            deployed = pair.student
            measure = measured(config, task, deployed, pair.teacher)
        records += train_students(
            run, task, name, program, deployed, seeds, measure=measure
        )
    return records


def measured(
    config: Config, task: Task, student: Network, teacher: Network | None
) -> Callable[[Any, list[dict]], Mapping[str, float]]:
    """Return what measures calibration, the teacher, and how far their entropies are.

    Entropies are of the test examples, at the divergences' temperature.
    """
    labels = jnp.asarray(example_labels(task.test))
    networks = [student] if teacher is None else [student, teacher]
    predict = [predictor(n, task.test, transform=task.test_transform) for n in networks]

    def measure(state: Any, history: list[dict]) -> dict[str, float]:
        logits = [jnp.asarray(run(state.student)) for run in predict]
        confidence = jax.nn.softmax(logits[0]).max(-1).mean()
        found = {
            "adaptive_ece": history[-1]["adaptive_ece"],
            "overconfidence": float(confidence - accuracy(logits[0], labels)),
        }
        if teacher is not None:
            h_s, h_t = (prediction_entropy(z, config.temperature) for z in logits)
            found["teacher_accuracy"] = float(accuracy(logits[1], labels))
            found["entropy_gap"] = float(jnp.abs(h_s - h_t).mean())
        return found

    return measure


def single_updates(config: Config, table: Table, task: Task) -> list[Record]:
    """Return what one update of the student does to its entropies, batch by batch.

    All updates start from one pair, trained together for a few epochs with equal
    weights. Softening is the mean rise of entropy of the examples of which the student
    is surer than the teacher, sharpening the mean fall of the others.
    """
    pair = Pair.of(table, task.train.classes)
    early = replace(task, epochs=config.mechanism_epochs)
    method = objectives(config)["one_to_one"]
    state, _ = training.fit(
        early.distill(pair.both, None, method), early.batches(0), key=jax.random.key(0)
    )
    variables, temperature = state.student, config.temperature

    def entropies(params: Any, batch: Batch) -> list[jax.Array]:
        outputs, _ = pair.both.apply(
            {**variables, "params": params}, batch["image"], taps=TAPS
        )
        return [prediction_entropy(outputs.features[t], temperature) for t in TAPS]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def changes(delta: float, invert: bool, batch: Batch) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            outputs, _ = pair.both.apply(
                {**variables, "params": params}, batch["image"], taps=TAPS
            )
            z_s, z_t = (outputs.features[tap] for tap in TAPS)
            label, weight = batch["label"], config.weight
            own, _ = bdkd_loss(
                z_s, z_t, label, temperature, delta, weight, invert=invert
            )
            return own.mean()

        before, teacher = entropies(variables["params"], batch)
        slope = jax.grad(loss)(variables["params"])
        moved = jax.tree.map(
            lambda p, g: p - config.mechanism_rate * g, variables["params"], slope
        )
        change = entropies(moved, batch)[0] - before
        softening = jnp.mean(change, where=before < teacher)
        return softening, jnp.mean(-change, where=before > teacher)

    cases = {
        "one_to_one": (1.0, False),
        "bdkd": (config.delta, False),
        "inverted": (config.delta, True),
    }
    batches = data.batches(
        task.train, task.batch_size, epochs=config.mechanism_batches, seed=1
    )
    records = []
    for number, batch in zip(range(config.mechanism_batches), batches, strict=False):
        for name, case in cases.items():
            found = zip(("softening", "sharpening"), changes(*case, batch), strict=True)
            records += [
                Record(name, number, metric, float(value), 0.0, MECHANISM)
                for metric, value in found
                if np.isfinite(value)
            ]
    return records


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return BD-KD's program of each pair, with the shapes of its batch."""
    method = objectives(config)["bdkd"]
    return {
        name: (
            distill(
                Pair.of(table, 100).both,
                None,
                method,
                table.optimizer()(table.epochs),
            ),
            image_batch(table.batch_size, 32),
        )
        for name, table in TABLES.items()
        if name in config.tables
    }
