"""The classic distillation methods, each with the weights of its paper.

One trained teacher a pair of networks, students of every method, several seeds, the
last epoch and the best. ``small`` and ``demo`` take few digits: perceptrons for losses
on logits and pooled features, where the claims on accuracy are made, and convolutional
networks of equal widths for losses on maps. ``cifar`` takes 1,000 images of CIFAR-10 at
half their resolution: ResNets, and a ResNet that teaches a vision transformer.
``paper`` is the benchmarks' protocol: CIFAR-100, 240 epochs, nine pairs.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.baselines.config import PRESETS, Config
from experiments.baselines.networks import (
    PAIRS,
    PAPER_PAIRS,
    classifier,
    stage_norms,
)
from experiments.baselines.paper import PAPER as PAPER  # the report's column
from experiments.baselines.recipes import Pair, Recipe, logit_recipes, stage_recipes
from experiments.common.training import (
    NetworkSpec,
    Task,
    adam_cosine,
    build,
    sgd_milestones,
    teacher_records,
    train_on_labels,
    train_students,
    transforms,
)
from jaxkd import data, models
from jaxkd.checks import unknown_name
from jaxkd.evaluation.classification import example_labels, predictor
from jaxkd.network import Network
from jaxkd.reporting.claims import all_of, contrast
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.records import Record

WATCHED = {
    "mlp": ("rkd", "pkt", "cc", "crd"),
    "cnn": (
        *("rkd", "pkt", "cc", "crd", "sp", "fitnets", "at", "nst", "ft", "vid", "ab"),
        *("fsp", "ofd", "reviewkd", "simkd", "mgd", "cwd"),
    ),
}
"""Methods whose own loss should fall, by pair."""

CLAIMS = [
    contrast("kd", "cross_entropy", "last_accuracy", setting="mlp"),
    contrast("lskd", "kd", "last_accuracy", setting="mlp"),
    all_of(
        "every method's own loss falls by half (cnn)",
        [
            contrast(
                method,
                0.5 * cell(method, "first_loss"),
                "last_loss",
                setting="cnn",
                lower=True,
                name=method,
            )
            for method in WATCHED["cnn"]
        ],
    ),
    *(
        contrast(
            method,
            "cross_entropy",
            "last_accuracy",
            0.01,
            "non-inferiority",
            setting="cnn",
            because="below the sampling error of 397 test images, 1.6 points",
        )
        for method in WATCHED["cnn"]
    ),
    *(
        contrast(better, worse, "last_accuracy", setting=pair)
        for pair in (*PRESETS["cifar"].pairs, *PAPER_PAIRS)
        for better, worse in (
            ("kd", "cross_entropy"),
            ("dkd", "kd"),
            ("lskd", "kd"),
            ("dist", "kd"),
            ("crd", "kd"),
            ("reviewkd", "kd"),
        )
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

    def task(self, source: data.Examples, epochs: int, learning_rate: float) -> Task:
        """Return the training of the teacher or of students."""
        config = self.config
        train, test = transforms(self.dataset, config.augment, 4 // config.shrink)
        return Task(
            setting=self.setting,
            train=source,
            test=self.dataset.test,
            epochs=epochs,
            batch_size=config.batch_size,
            optimizer=self.optimizer(learning_rate, epochs),
            transform=train,
            test_transform=test,
            evaluate_every=config.evaluate_every,
        )

    def optimizer(self, learning_rate: float, epochs: int):
        """Return ``steps ->`` the configuration's optimizer and decay of the rate."""
        config = self.config
        if config.optimizer == "adam":
            return adam_cosine(learning_rate)
        if config.optimizer != "sgd":
            raise ValueError(
                unknown_name("optimizer", config.optimizer, ["adam", "sgd"])
            )
        rate = PAIRS[self.setting].learning_rate * learning_rate
        return sgd_milestones(rate, config.weight_decay, config.milestones, epochs)


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the teachers and all students, and return the records."""
    for pair in config.pairs:
        if pair not in PAIRS:
            raise ValueError(unknown_name("pair", pair, PAIRS))
    dataset = load_dataset(config)
    jobs = [Job(pair, config, dataset, seeds, run) for pair in config.pairs]
    return [record for job in jobs for record in run_pair(job)]


def load_dataset(config: Config) -> data.Dataset:
    """Return the data set with its test part cut and its images averaged down."""
    found = data.load(config.dataset)
    train, test = found.train, found.test
    if config.test_examples:
        test = test.subset(config.test_examples)
    if config.shrink > 1:
        train, test = (shrunk(source, config.shrink) for source in (train, test))
    return replace(found, train=train, test=test)


def shrunk(source: data.Source, by: int) -> data.Source:
    """Return a source with every image averaged down."""
    image = source.arrays["image"]
    n, height, width, channels = image.shape
    blocks = image.reshape(n, height // by, by, width // by, by, channels)
    small = blocks.mean((2, 4))
    if np.issubdtype(image.dtype, np.integer):
        small = small.round()
    small = small.astype(image.dtype)
    name = f"{source.name}/{height // by}x{width // by}"
    return data.Source(name, {**source.arrays, "image": small}, source.classes)


def run_pair(job: Job) -> list[Record]:
    """Return one pair's records: the teacher's, then every method's."""
    config, dataset, spec = job.config, job.dataset, PAIRS[job.setting]
    source = dataset.train
    if config.train_examples:
        source = source.subset(config.train_examples)
    task = job.task(source, config.epochs, config.learning_rate)
    student, teacher = (build(s, source.classes) for s in (spec.student, spec.teacher))
    started = time.perf_counter()
    # Pairs of the same teacher share it.
    variables = train_on_labels(
        job.run,
        job.task(dataset.train, config.teacher_epochs, config.teacher_learning_rate),
        teacher,
        f"teacher-{'-'.join(map(str, _flat(spec.teacher)))}",
    )
    seconds = time.perf_counter() - started
    predict = predictor(teacher, dataset.test, transform=task.test_transform)
    teacher_logits = predict(variables)
    records = teacher_records(task, teacher_logits, seconds)

    def peer() -> Network:
        found = train_on_labels(
            job.run, task, student, f"{job.setting}/student-on-labels"
        )
        return student.with_variables(found)

    branched = spec.branched
    pair = Pair(
        student=student,
        teacher=teacher.with_variables(variables),
        classifier=classifier(variables),
        norms=stage_norms(spec.teacher, variables, spec.stages),
        peer=peer,
        labels=example_labels(source),
        batches=lambda epochs: task.batches(seed=0, epochs=epochs),
        steps_per_epoch=task.steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        stage_one_epochs=config.stage_one_epochs,
        stages=spec.stages,
        branched=None
        if branched is None
        else models.one_cnn(classes=source.classes, **branched),
        dkd_beta=spec.dkd_beta,
    )
    recipes = logit_recipes(pair)
    if pair.stages:
        recipes |= stage_recipes(pair, seed=0)
    for method in wanted(job, recipes):
        recipe = recipes[method]()
        records += train_students(
            job.run,
            task,
            method,
            task.distill(recipe.student, recipe.teacher, recipe.method),
            recipe.deployed,
            job.seeds,
            teacher_logits=teacher_logits,
            measure=watch(recipe),
        )
    return records


def watch(recipe: Recipe) -> Callable[[Any, list[dict]], dict[str, float]]:
    """Return what is measured of a method whose own loss should fall."""

    def measure(state: Any, history: list[dict]) -> dict[str, float]:
        if not recipe.watched:
            return {}
        name = f"train_{recipe.watched}"
        return {"first_loss": history[0][name], "last_loss": history[-1][name]}

    return measure


def _flat(spec: NetworkSpec) -> list:
    name, arguments = spec
    return [name, *(str(v).replace(" ", "") for v in arguments.values())]


def wanted(job: Job, recipes: Iterable[str]) -> list[str]:
    """Return the configuration's methods for a pair.

    Raises:
        ValueError: one that does not apply to the pair, or to no pair.
    """
    if not job.config.methods:
        return list(recipes)
    found = []
    for given in job.config.methods:
        pair, _, method = given.rpartition("/")
        if pair not in ("", *job.config.pairs):
            raise ValueError(unknown_name("pair", pair, job.config.pairs))
        if pair in ("", job.setting):
            if method not in recipes:
                raise ValueError(unknown_name(f"{job.setting} method", method, recipes))
            found.append(method)
    return found
