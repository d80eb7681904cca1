"""The classic distillation methods, each with the weights of its paper.

One trained teacher a pair of networks, students of every method, several seeds, the
last epoch and the best. ``small`` and ``demo`` take few digits: perceptrons for losses
on logits and pooled features, where the claims on accuracy are made, and convolutional
networks of equal widths for losses on maps. ``cifar`` takes 1,000 images of CIFAR-10 at
half their resolution: ResNets, and a ResNet that teaches a vision transformer.
``paper`` is the benchmarks' protocol: CIFAR-100, 240 epochs, nine pairs.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.baselines.config import PRESETS, Config
from experiments.baselines.networks import (
    PAIRS,
    PAPER_PAIRS,
    classifier,
    stage_norms,
)
from experiments.baselines.paper import PAPER as PAPER  # the report's column
from experiments.baselines.recipes import Pair, Recipe, logit_recipes, stage_recipes
from jaxkd import data, models, training
from jaxkd.checks import unknown_name
from jaxkd.evaluation.claims import exceeds, falls_by, not_below
from jaxkd.evaluation.classification import (
    classification_metrics,
    evaluator,
    example_labels,
    predictor,
)
from jaxkd.evaluation.records import Record
from jaxkd.experiment import Run
from jaxkd.interop import save_pretrained
from jaxkd.types import Network, Variables

WATCHED = {
    "mlp": ("rkd", "pkt", "cc", "crd"),
    "cnn": (
        *("rkd", "pkt", "cc", "crd", "sp", "fitnets", "at", "nst", "ft", "vid", "ab"),
        *("fsp", "ofd", "reviewkd", "simkd", "mgd", "cwd"),
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
    *(
        exceeds(better, worse, "last_accuracy", setting=pair, errors=2.0)
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

    def network(self, who: str) -> Network:
        """Return the teacher's or the student's network."""
        spec = PAIRS[self.setting]
        return spec.build(getattr(spec, who), self.dataset.test.classes)

    def transform(self, train: bool) -> data.Transform | None:
        """Return what happens to a batch: nothing, scaling, or augmentation too."""
        if not self.dataset.mean:
            return None
        scale = data.Normalize(self.dataset.mean, self.dataset.std)
        if not (train and self.config.augment):
            return scale
        shift = data.PadCrop(4 // self.config.shrink)
        return data.Compose((shift, data.Flip(), scale))

    def batches(self, source: data.Examples, epochs: int, seed: int):
        """Return training batches."""
        size = self.config.batch_size
        return data.batches(
            source, size, epochs=epochs, seed=seed, transform=self.transform(train=True)
        )

    def optimizer(
        self, learning_rate: float, epochs: int, steps_per_epoch: int
    ) -> optax.GradientTransformation:
        """Return the configuration's optimizer with its decay of the rate."""
        config = self.config
        rate = optax.cosine_decay_schedule(learning_rate, epochs * steps_per_epoch)
        if config.milestones:
            rate = optax.piecewise_constant_schedule(
                learning_rate, {m * steps_per_epoch: 0.1 for m in config.milestones}
            )
        if config.optimizer == "adam":
            return optax.adam(rate)
        if config.optimizer != "sgd":
            raise ValueError(
                unknown_name("optimizer", config.optimizer, ["adam", "sgd"])
            )
        share = PAIRS[self.setting].learning_rate
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(lambda step: share * rate(step), momentum=0.9),
        )


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
    small = blocks.mean((2, 4)).round().astype(image.dtype)
    name = f"{source.name}/{height // by}x{width // by}"
    return data.Source(name, {**source.arrays, "image": small}, source.classes)


def run_pair(job: Job) -> list[Record]:
    """Return one pair's records: the teacher's, then every method's."""
    config, dataset, spec = job.config, job.dataset, PAIRS[job.setting]
    source = dataset.train
    if config.train_examples:
        source = source.subset(config.train_examples)
    student, teacher = job.network("student"), job.network("teacher")
    started = time.perf_counter()
    # Pairs of the same teacher share it.
    variables = train_on_labels(
        job,
        "teacher",
        job.run.folder / f"teacher-{'-'.join(map(str, _flat(spec.teacher)))}",
        dataset.train,
        config.teacher_epochs,
        config.teacher_learning_rate,
    )
    seconds = time.perf_counter() - started
    predict = predictor(teacher, dataset.test, transform=job.transform(train=False))
    teacher_logits = predict(variables)
    records = teacher_records(job, teacher_logits, seconds)

    def peer() -> Network:
        folder = job.run.folder / job.setting / "student-on-labels"
        found = train_on_labels(
            job, "student", folder, source, config.epochs, config.learning_rate
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
        batches=lambda epochs: job.batches(source, epochs, seed=0),
        steps_per_epoch=data.steps_per_epoch(source, config.batch_size),
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
        records += run_method(job, method, recipe, pair, source, teacher_logits)
    return records


def _flat(spec) -> list:
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


def train_on_labels(
    job: Job,
    who: str,
    folder: Path,
    source: data.Examples,
    epochs: int,
    learning_rate: float,
) -> Variables:
    """Return the teacher's or student's variables after supervised training."""
    per_epoch = data.steps_per_epoch(source, job.config.batch_size)
    program = jaxkd.distill(
        job.network(who),
        None,
        jaxkd.methods.cross_entropy(),
        job.optimizer(learning_rate, epochs, per_epoch),
    )
    with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        state, _ = training.fit(
            program,
            job.batches(source, epochs, seed=0),
            key=jax.random.key(0),
            checkpoints=checkpoints,
            checkpoint_every=max(epochs // 4, 1) * per_epoch,
            progress=job.run.progress,
            steps=epochs * per_epoch,
            name=f"{job.setting} {who} on labels",
        )
    return state.student


def teacher_records(job: Job, logits: np.ndarray, seconds: float) -> list[Record]:
    """Return the teacher's row: its last epoch is its best, it is not chosen."""
    labels = example_labels(job.dataset.test)
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
    job: Job,
    method: str,
    recipe: Recipe,
    pair: Pair,
    source: data.Examples,
    teacher_logits: np.ndarray,
) -> list[Record]:
    """Return one method's records: a student a seed, compiled once for all."""
    config, per_epoch = job.config, pair.steps_per_epoch
    optimizer = job.optimizer(config.learning_rate, config.epochs, per_epoch)
    program = jaxkd.distill(recipe.student, recipe.teacher, recipe.method, optimizer)
    test = job.dataset.test
    evaluate = evaluator(
        recipe.deployed, test, teacher_logits, transform=job.transform(train=False)
    )

    def train(seed: int, folder: Path) -> list[Record]:
        started = time.perf_counter()
        with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            state, history = training.fit(
                program,
                job.batches(source, config.epochs, seed),
                key=jax.random.key(seed),
                steps=config.epochs * per_epoch,
                evaluate=lambda state: evaluate(state.student),
                evaluate_every=config.evaluate_every * per_epoch,
                checkpoints=checkpoints,
                checkpoint_every=max(config.epochs // 4, 1) * per_epoch,
                progress=job.run.progress,
                name=f"{job.setting} {method} seed {seed}",
            )
        if recipe.student is pair.student:
            name, arguments = PAIRS[job.setting].student
            shape = test.take(np.arange(1))["image"].shape[1:]
            arguments = {**arguments, "classes": test.classes}
            save_pretrained(folder / "student", name, arguments, state.student, shape)
        seconds = time.perf_counter() - started
        return student_records(job, method, recipe, seed, history, seconds)

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
    measured = ("nll", "ece", "agreement", "teacher_kl")
    values = {
        "last_accuracy": curve[-1],
        "best_accuracy": max(curve),
        **{metric: last[metric] for metric in measured},
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
