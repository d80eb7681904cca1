"""The classic distillation methods, each with the weights of its paper.

One trained teacher, students of every method on few real digit images, several seeds.
Two pairs: perceptrons for losses on logits and pooled features, where the claims on
accuracy are made, and convolutional networks of equal widths for losses on maps.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.baselines.recipes import Pair, Recipe, logit_recipes, stage_recipes
from jaxkd import data, models, training
from jaxkd.checks import unknown_name
from jaxkd.evaluation.claims import exceeds, falls_by, not_below
from jaxkd.evaluation.classification import (
    classification_metrics,
    evaluator,
    predictor,
)
from jaxkd.evaluation.records import Record
from jaxkd.experiment import Run
from jaxkd.interop import save_pretrained
from jaxkd.types import Network, Variables

PAIRS = {
    "mlp": {
        "teacher": ("mlp", {"features": 64, "widths": (256, 256)}),
        "student": ("mlp", {"features": 64, "widths": (16,)}),
    },
    "cnn": {
        "teacher": ("cnn", {"channels": (8, 16, 32), "depth": 3}),
        "student": ("cnn", {"channels": (8, 16, 32), "depth": 1}),
    },
}
"""Model name and arguments of the networks; FSP needs pairs of equal widths."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``, of 8x8 images in 10 classes.
        train_examples: that the students see; the teacher sees all.
        epochs: of a student.
        batch_size: of a student.
        learning_rate: of a student's Adam, decayed to 0 on a cosine.
        teacher_epochs: of the teacher.
        teacher_learning_rate: of the teacher's Adam, decayed likewise.
        mlp: methods to run on the perceptrons; empty for all that apply.
        cnn: methods to run on the convolutional pair; empty for all that apply.
    """

    dataset: str = "digits"
    train_examples: int = 100
    epochs: int = 200
    batch_size: int = 50
    learning_rate: float = 1e-2
    teacher_epochs: int = 60
    teacher_learning_rate: float = 3e-3
    mlp: tuple[str, ...] = ()
    cnn: tuple[str, ...] = ()


PRESETS = {
    "small": Config(),
    "demo": Config(
        teacher_epochs=30,
        mlp=("cross_entropy", "kd", "dist", "lskd", "crd"),
        cnn=("cross_entropy", "kd", "fitnets", "simkd"),
    ),
}

WATCHED = {
    "mlp": ("rkd", "pkt", "cc", "crd"),
    "cnn": (
        "rkd",
        "pkt",
        "cc",
        "crd",
        "sp",
        "fitnets",
        "at",
        "nst",
        "ft",
        "vid",
        "ab",
        "fsp",
        "ofd",
        "reviewkd",
        "simkd",
        "mgd",
        "cwd",
    ),
}
"""Methods whose own loss should fall, by pair."""

CLAIMS = [
    exceeds("kd", "cross_entropy", "last_accuracy", setting="mlp", errors=2.0),
    exceeds("lskd", "kd", "last_accuracy", setting="mlp", errors=2.0),
    falls_by("first_loss", "last_loss", 0.5, WATCHED["cnn"], setting="cnn"),
    *(
        not_below(method, "cross_entropy", "last_accuracy", setting="cnn", errors=1.0)
        for method in WATCHED["cnn"]
    ),
]


@dataclass(frozen=True)
class Job:
    """One pair's part of a run."""

    setting: str
    config: Config
    dataset: data.Dataset
    seeds: Sequence[int]
    run: Run

    def network(self, who: str) -> Network:
        """Return the teacher's or the student's network."""
        name, arguments = PAIRS[self.setting][who]
        return models.create(name, **arguments)


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the teachers and all students, and return the records."""
    dataset = data.load(config.dataset)
    jobs = [Job(setting, config, dataset, seeds, run) for setting in PAIRS]
    return [record for job in jobs for record in run_pair(job)]


def run_pair(job: Job) -> list[Record]:
    """Return one pair's records: the teacher's, then every method's."""
    config, dataset = job.config, job.dataset
    source = dataset.train.subset(config.train_examples)
    student, teacher = job.network("student"), job.network("teacher")
    started = time.perf_counter()
    variables = train_on_labels(
        job,
        "teacher",
        dataset.train,
        config.teacher_epochs,
        config.teacher_learning_rate,
    )
    seconds = time.perf_counter() - started
    teacher_logits = predictor(teacher, dataset.test)(variables)
    records = teacher_records(job, teacher_logits, seconds)
    peer = train_on_labels(job, "student", source, config.epochs, config.learning_rate)
    channels = PAIRS[job.setting]["student"][1].get("channels", ())
    pair = Pair(
        student=student,
        teacher=teacher.with_variables(variables),
        teacher_variables=variables,
        peer=student.with_variables(peer),
        source=source,
        steps_per_epoch=data.steps_per_epoch(source, config.batch_size),
        stages=tuple(f"stage{i}" for i in range(len(channels))),
        branched=models.one_cnn(channels=channels) if channels else None,
    )
    recipes = logit_recipes(pair)
    if pair.stages:
        recipes |= stage_recipes(pair, seed=0)
    for method in getattr(config, job.setting) or recipes:
        if method not in recipes:
            raise ValueError(unknown_name(f"{job.setting} method", method, recipes))
        recipe = recipes[method]()
        records += run_method(job, method, recipe, pair, teacher_logits)
    return records


def train_on_labels(
    job: Job, who: str, source: data.Source, epochs: int, learning_rate: float
) -> Variables:
    """Return the teacher's or student's variables after supervised training."""
    size = job.config.batch_size
    steps = epochs * data.steps_per_epoch(source, size)
    decay = optax.cosine_decay_schedule(learning_rate, steps)
    program = jaxkd.distill(
        job.network(who), None, jaxkd.methods.cross_entropy(), optax.adam(decay)
    )
    folder = job.run.folder / job.setting / f"{who}-on-labels" / "checkpoints"
    with training.Checkpoints(folder, keep=1) as checkpoints:
        state, _ = training.fit(
            program,
            data.batches(source, size, epochs=epochs, seed=0),
            key=jax.random.key(0),
            checkpoints=checkpoints,
            progress=job.run.progress,
            steps=steps,
            name=f"{job.setting} {who} on labels",
        )
    return state.student


def teacher_records(job: Job, logits: np.ndarray, seconds: float) -> list[Record]:
    """Return the teacher's row: its last epoch is its best, it is not chosen."""
    labels = job.dataset.test.arrays["label"]
    scores = classification_metrics(jnp.asarray(logits), jnp.asarray(labels))
    values = {
        "last_accuracy": scores["accuracy"],
        "best_accuracy": scores["accuracy"],
        "nll": scores["nll"],
        "ece": scores["ece"],
    }
    return [
        Record("teacher", 0, metric, float(value), seconds, job.setting)
        for metric, value in values.items()
    ]


def run_method(
    job: Job, method: str, recipe: Recipe, pair: Pair, teacher_logits: np.ndarray
) -> list[Record]:
    """Return one method's records: a student a seed, compiled once for all."""
    config, steps = job.config, pair.steps_per_epoch
    decay = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    program = jaxkd.distill(
        recipe.student, recipe.teacher, recipe.method, optax.adam(decay)
    )
    evaluate = evaluator(recipe.deployed, job.dataset.test, teacher_logits)

    def train(seed: int, folder: Path) -> list[Record]:
        started = time.perf_counter()
        with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            state, history = training.fit(
                program,
                data.batches(
                    pair.source, config.batch_size, epochs=config.epochs, seed=seed
                ),
                key=jax.random.key(seed),
                steps=config.epochs * steps,
                evaluate=lambda state: evaluate(state.student),
                evaluate_every=steps,
                checkpoints=checkpoints,
                checkpoint_every=50 * steps,
                progress=job.run.progress,
                name=f"{job.setting} {method} seed {seed}",
            )
        if recipe.student is pair.student:
            name, arguments = PAIRS[job.setting]["student"]
            shape = pair.source.arrays["image"].shape[1:]
            save_pretrained(folder / "student", name, arguments, state.student, shape)
        return student_records(
            job, method, recipe, seed, history, time.perf_counter() - started
        )

    return [
        record
        for seed in job.seeds
        for record in job.run.part(
            f"{job.setting}/{method}/seed{seed}",
            lambda folder, seed=seed: train(seed, folder),
        )
    ]


def student_records(
    job: Job,
    method: str,
    recipe: Recipe,
    seed: int,
    history: list[dict],
    seconds: float,
) -> list[Record]:
    """Return the numbers of one student: last and best epoch, calibration, fidelity."""
    curve = tuple(entry["accuracy"] for entry in history)
    last = history[-1]
    values = {
        "last_accuracy": curve[-1],
        "best_accuracy": max(curve),
        **{metric: last[metric] for metric in ("nll", "ece", "agreement")},
    }
    if recipe.watched:
        values["first_loss"] = history[0][f"train_{recipe.watched}"]
        values["last_loss"] = last[f"train_{recipe.watched}"]
    return [
        Record(
            method,
            seed,
            metric,
            value,
            seconds,
            job.setting,
            curve if metric == "last_accuracy" else (),
        )
        for metric, value in values.items()
    ]
