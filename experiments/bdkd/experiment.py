"""BD-KD: balanced divergences between a student and a teacher that learn together.

Amara et al. 2022 (arXiv:2212.12965) train a large and a small network together. The
small one gets both the forward and the reverse KL, weighed example by example by which
network is surer. They report its accuracy above, and its calibration error below, those
of other online distillation.

``small`` takes 5,000 images of Fashion-MNIST at half their resolution, and 300 digits;
on the digits it also compares what single updates do to the entropies. ``paper`` is
CIFAR-100 with three pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification, ImagesConfig, image_batch
from experiments.common.configs import CIFAR_SGD, NetworkConfig, OptimizerConfig, choose
from experiments.common.networks import PAIRS
from jaxkd import distill, networks
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
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, History, Run, Task, Values, records, run_arms
from jaxkd.types import Batch, Method, Program

declare(
    entropy_gap=Metric("entropy gap", higher_is_better=False),
)

MECHANISM = "single updates"
TAPS = ("0.logits", "1.logits")


@dataclass(frozen=True)
class Table:
    """Two networks that learn one data set together.

    Attributes:
        student: the network that is deployed.
        teacher: the larger one.
        task: the images, and how long they are learnt.
        optimizer: of both networks.
        train_examples: 0 for all.
        seeds: at most so many.
    """

    student: NetworkConfig
    teacher: NetworkConfig
    task: ImagesConfig
    optimizer: OptimizerConfig
    train_examples: int = 0
    seeds: int = 3

    def ensemble(self, classes: int) -> Network:
        """Return both networks as one, the student first."""
        members = [net.build(classes) for net in (self.student, self.teacher)]
        return networks.ensemble(members, mean="logits")

    def load(self) -> Classification:
        """Return the data."""
        return self.task.load(self.optimizer).subset(self.train_examples)


ADAM = OptimizerConfig("adam", 3e-3, schedule="constant")
CIFAR100 = ImagesConfig("tfds/cifar100", epochs=240, batch_size=64)
PAPER_PAIRS = ("resnet56-resnet20", "resnet110-resnet32", "wrn40_2-wrn16_2")
TABLES = {
    "fashion": Table(
        NetworkConfig("cnn", {"channels": (8, 16)}),
        NetworkConfig("cnn", {"channels": (32, 64, 128)}),
        ImagesConfig(
            "fashion_mnist",
            shrink=2,
            shift=8,
            epochs=15,
            batch_size=64,
            evaluate_every=5,
        ),
        ADAM,
        train_examples=5000,
    ),
    "digits": Table(
        NetworkConfig("mlp", {"features": 64, "widths": (12,)}),
        NetworkConfig("mlp", {"features": 64, "widths": (256, 256)}),
        ImagesConfig("digits", epochs=120, evaluate_every=20),
        ADAM,
        train_examples=300,
        seeds=5,
    ),
    **{
        name: Table(
            PAIRS[name].student,
            PAIRS[name].teacher,
            CIFAR100,
            CIFAR_SGD,
        )
        for name in PAPER_PAIRS
    },
}
"""Pairs of networks and their data sets, by name."""

METHODS = ("cross_entropy", "dml", "rkl", "one_to_one", "bdkd", "inverted")


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        tables: names of `TABLES`.
        methods: the rows of every table; empty for all.
        temperature: of all divergences and entropies.
        delta: the larger of BD-KD's weights.
        weight: λ of the divergences.
        mechanism: the table in whose networks single updates are compared; empty
            for none.
        mechanism_epochs: of training before those updates.
        mechanism_batches: how many updates, each from the same networks.
        mechanism_rate: learning rate of those updates, plain gradient descent.
    """

    tables: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    temperature: float = 2.0
    delta: float = 2.0
    weight: float = 1.0
    mechanism: str = ""
    mechanism_epochs: int = 60
    mechanism_batches: int = 20
    mechanism_rate: float = 0.1


PRESETS = {
    "small": Config(("fashion", "digits"), mechanism="digits"),
    "paper": Config(PAPER_PAIRS, methods=(*METHODS[:-1], "kdcl")),
}

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
    """Return the rows' methods; all but the first train both networks."""
    balanced = (config.temperature, config.delta, config.weight)
    return {
        "cross_entropy": cross_entropy(),
        "dml": fixed_weights("dml", config, 1.0, 0.0),
        "rkl": fixed_weights("rkl", config, 0.0, 1.0),
        "one_to_one": fixed_weights("one_to_one", config, 1.0, 1.0),
        "bdkd": bdkd(*balanced),
        "inverted": bdkd(*balanced, invert=True),
        "kdcl": kdcl(2, temperature=config.temperature, weight=config.weight),
    }


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield every table's pairs, and its student alone."""
    methods = choose("method", config.methods, objectives(config))
    for setting, table in choose("table", config.tables, TABLES).items():
        images = table.load()
        task = replace(images.task(setting), seeds=table.seeds)
        both = table.ensemble(images.classes)
        pair = [networks.with_logits(both, tap) for tap in TAPS]
        for name, method in methods.items():
            alone = name == "cross_entropy"
            tested = [table.student.build(images.classes)] if alone else pair
            program = images.distill(tested[0] if alone else both, None, method)
            measure = measured(config.temperature, images, tested)
            yield Arm(name, program, tested[0], measure=measure), task


def measured(temperature: float, images: Classification, tested: Sequence[Network]):
    """Return what measures calibration, the teacher, and how far their entropies are.

    Args:
        temperature: of the entropies, which are of the test examples.
        images: the data.
        tested: the student, and the teacher if there is one.
    """
    labels = jnp.asarray(example_labels(images.test))
    predict = [
        predictor(n, images.test, transform=images.test_transform) for n in tested
    ]

    def measure(state: Any, history: History) -> Values:
        logits = [jnp.asarray(run(state.student)) for run in predict]
        confidence = jax.nn.softmax(logits[0]).max(-1).mean()
        found = {
            "adaptive_ece": history[-1]["adaptive_ece"],
            "overconfidence": float(confidence - accuracy(logits[0], labels)),
        }
        if len(tested) > 1:
            h_s, h_t = (prediction_entropy(z, temperature) for z in logits)
            found["teacher_accuracy"] = float(accuracy(logits[1], labels))
            found["entropy_gap"] = float(jnp.abs(h_s - h_t).mean())
        return found

    return measure


def single_updates(config: Config, run: Run, folder: Path) -> list[Record]:
    """Return what one update of the student does to its entropies, batch by batch.

    All updates start from one pair, trained together for a few epochs with equal
    weights. Softening is the mean rise of entropy of the examples of which the student
    is surer than the teacher, sharpening the mean fall of the others.
    """
    table = TABLES[config.mechanism]
    images = replace(table.load(), epochs=config.mechanism_epochs)
    both = table.ensemble(images.classes)
    program = images.distill(both, None, objectives(config)["one_to_one"])
    state, _ = run.fit(program, images.task(), 0, folder, MECHANISM)
    params, temperature = state.student["params"], config.temperature

    def logits(params: Any, batch: Batch) -> list[jax.Array]:
        variables = {**state.student, "params": params}
        outputs, _ = both.apply(variables, batch["image"], taps=TAPS)
        return [outputs.features[tap] for tap in TAPS]

    @partial(jax.jit, static_argnums=(0, 1))
    def changes(delta: float, invert: bool, batch: Batch) -> dict[str, jax.Array]:
        def loss(params: Any) -> jax.Array:
            z_s, z_t = logits(params, batch)
            own, _ = bdkd_loss(
                z_s,
                z_t,
                batch["label"],
                temperature,
                delta,
                config.weight,
                invert=invert,
            )
            return own.mean()

        moved = jax.tree.map(
            lambda p, g: p - config.mechanism_rate * g, params, jax.grad(loss)(params)
        )
        before, teacher, after = (
            prediction_entropy(z, temperature)
            for z in (*logits(params, batch), logits(moved, batch)[0])
        )
        return {
            "softening": jnp.mean(after - before, where=before < teacher),
            "sharpening": jnp.mean(before - after, where=before > teacher),
        }

    cases = {
        "one_to_one": (1.0, False),
        "bdkd": (config.delta, False),
        "inverted": (config.delta, True),
    }
    batches = images.batches(seed=1, epochs=config.mechanism_batches)
    found = []
    for number, batch in zip(range(config.mechanism_batches), batches, strict=False):
        for name, case in cases.items():
            values = {k: float(v) for k, v in changes(*case, batch).items()}
            finite = {k: v for k, v in values.items() if np.isfinite(v)}
            found += records(MECHANISM, name, number, finite, 0.0)
    return found


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train all methods' pairs of every table, and compare single updates."""
    found = run_arms(arms, config, seeds, run)
    if config.mechanism:
        found += run.part(MECHANISM, partial(single_updates, config, run))
    return found


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return BD-KD's program of each pair, with the shapes of its batch."""
    method, found = objectives(config)["bdkd"], {}
    for name in config.tables:
        table, epochs = TABLES[name], TABLES[name].task.epochs
        optimizer = table.optimizer.build(epochs, epochs)
        program = distill(table.ensemble(classes=100), None, method, optimizer)
        found[name] = program, image_batch(table.task.batch_size, 32)
    return found


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("teacher", "student", "order"),
)
