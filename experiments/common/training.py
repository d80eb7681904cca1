"""What experiments on classification share: a teacher, students over seeds, records."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from jaxkd import data, training
from jaxkd.evaluation.classification import (
    classification_metrics,
    evaluator,
    example_labels,
)
from jaxkd.interop import save_pretrained
from jaxkd.models import create
from jaxkd.network import Network
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Method, Program, Variables

NetworkSpec = tuple[str, dict[str, Any]]
"""A model's name in ``jaxkd.models.MODELS`` and its arguments but the classes."""


Optimizer = Callable[[int], optax.GradientTransformation]
"""``steps -> optimizer``, for a rate that decays over the run."""

Measure = Callable[[Any, list[dict]], Mapping[str, float]]
"""``(last state, history) ->`` metrics of a student beside the usual ones."""


@dataclass(frozen=True)
class Task:
    """What the students of one table are trained and tested on.

    Attributes:
        setting: the table's name; empty if the experiment has one.
        train: the examples to train on.
        test: the examples to test on.
        epochs: to train for.
        batch_size: of training.
        optimizer: for a number of steps.
        transform: of training batches.
        test_transform: of test batches.
        evaluate_every: epochs between evaluations.
    """

    setting: str
    train: data.Examples
    test: data.Examples
    epochs: int
    batch_size: int
    optimizer: Optimizer
    transform: data.Transform | None = None
    test_transform: data.Transform | None = None
    evaluate_every: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps of one epoch."""
        return data.steps_per_epoch(self.train, self.batch_size)

    @property
    def steps(self) -> int:
        """Return the steps of a whole run."""
        return self.epochs * self.steps_per_epoch

    def batches(self, seed: int, epochs: int | None = None):
        """Return training batches of a run, or of some epochs."""
        return data.batches(
            self.train,
            self.batch_size,
            epochs=self.epochs if epochs is None else epochs,
            seed=seed,
            transform=self.transform,
        )

    def distill(
        self, student: Network, teacher: Network | None, method: Method
    ) -> Program:
        """Return the program that trains a student with the task's optimizer."""
        return jaxkd.distill(student, teacher, method, self.optimizer(self.steps))


def adam_cosine(learning_rate: float) -> Optimizer:
    """Return ``steps ->`` Adam with a rate that decays to 0 by a cosine."""
    return lambda steps: optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


def adamw_cosine(learning_rate: float, weight_decay: float) -> Optimizer:
    """Return ``steps ->`` AdamW with a rate that decays to 0 by a cosine."""
    return lambda steps: optax.adamw(
        optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay
    )


def sgd_milestones(
    learning_rate: float, weight_decay: float, milestones: Sequence[int], epochs: int
) -> Optimizer:
    """Return ``steps ->`` SGD with momentum 0.9 and weight decay in the gradient.

    Args:
        learning_rate: at the start.
        weight_decay: times the weights is added to the gradient.
        milestones: epochs after which the rate is a tenth; none for a cosine to 0.
        epochs: of the whole run.
    """

    def build(steps: int) -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(learning_rate, steps)
        if milestones:
            drops = {m * (steps // epochs): 0.1 for m in milestones}
            rate = optax.piecewise_constant_schedule(learning_rate, drops)
        return optax.chain(
            optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=0.9)
        )

    return build


def transforms(
    dataset: data.Dataset, augment: bool, shift: int = 4
) -> tuple[data.Transform | None, data.Transform | None]:
    """Return the transforms of training and test batches.

    Both are None for a data set that is scaled already.

    Args:
        dataset: its mean and deviation scale the images.
        augment: whether training images are shifted and mirrored at random.
        shift: by up to how many pixels.
    """
    if not dataset.mean:
        return None, None
    scale = data.Normalize(dataset.mean, dataset.std)
    if not augment:
        return scale, scale
    return data.Compose((data.PadCrop(shift), data.Flip(), scale)), scale


def image_batch(size: int, side: int, channels: int = 3) -> dict[str, Any]:
    """Return the shapes of a batch of labelled images, for compiling ahead of time."""
    return {
        "image": jax.ShapeDtypeStruct((size, side, side, channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


def train_on_labels(run: Run, task: Task, network: Network, name: str) -> Variables:
    """Return a network's variables after supervised training with seed 0.

    Args:
        run: keeps the checkpoints.
        task: a teacher's; ``dataclasses.replace`` makes it of the students'.
        network: to train.
        name: of the folder in the run, and on the bar.
    """
    program = task.distill(network, None, jaxkd.methods.cross_entropy())
    with training.Checkpoints(run.folder / name / "checkpoints", keep=1) as checkpoints:
        state, _ = training.fit(
            program,
            task.batches(seed=0),
            key=jax.random.key(0),
            steps=task.steps,
            checkpoints=checkpoints,
            checkpoint_every=max(task.epochs // 4, 1) * task.steps_per_epoch,
            progress=run.progress,
            name=f"{name} on labels",
        )
    return state.student


def teacher_records(task: Task, logits: np.ndarray, seconds: float) -> list[Record]:
    """Return a teacher's row: its last epoch is its best, it is not chosen.

    Args:
        task: whose test examples the logits are of.
        logits: the teacher's.
        seconds: its training took.
    """
    labels = jnp.asarray(example_labels(task.test))
    scores = classification_metrics(jnp.asarray(logits), labels)
    values = {
        "last_accuracy": scores["accuracy"],
        "best_accuracy": scores["accuracy"],
        "nll": scores["nll"],
        "ece": scores["ece"],
    }
    return [
        Record("teacher", 0, metric, float(value), seconds, task.setting)
        for metric, value in values.items()
    ]


def train_students(
    run: Run,
    task: Task,
    method: str,
    program: Program,
    deployed: Network,
    seeds: Sequence[int],
    *,
    teacher_logits: np.ndarray | None = None,
    variables: Callable[[Any], Variables] = lambda state: state.student,
    measure: Measure | None = None,
) -> list[Record]:
    """Return one method's records: a student a seed, compiled once for all.

    Args:
        run: keeps checkpoints and records of each seed.
        task: what to train and test on.
        method: its name in the table.
        program: trains a student.
        deployed: the network that is tested; one of the zoo's is kept in the part's
            folder for ``jaxkd export``.
        seeds: of the students and the order of their batches.
        teacher_logits: on the test examples, for agreement and KL.
        variables: ``state ->`` the deployed network's.
        measure: further metrics of each student.
    """
    evaluate = evaluator(
        deployed, task.test, teacher_logits, transform=task.test_transform
    )
    name = f"{task.setting}/{method}".strip("/")

    def train(seed: int, folder) -> list[Record]:
        started = time.perf_counter()
        with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            state, history = training.fit(
                program,
                task.batches(seed),
                key=jax.random.key(seed),
                steps=task.steps,
                evaluate=lambda state: evaluate(variables(state)),
                evaluate_every=task.evaluate_every * task.steps_per_epoch,
                checkpoints=checkpoints,
                checkpoint_every=max(task.epochs // 4, 1) * task.steps_per_epoch,
                progress=run.progress,
                name=f"{name} seed {seed}",
            )
        if deployed.spec is not None:
            image = task.test.take(np.arange(1)).get("image")
            save_pretrained(
                folder / "student",
                deployed,
                variables(state),
                input_shape=None if image is None else image.shape[1:],
            )
        further = {} if measure is None else measure(state, history)
        seconds = time.perf_counter() - started
        return student_records(task.setting, method, seed, history, further, seconds)

    return [
        record
        for seed in seeds
        for record in run.part(
            f"{name}/seed{seed}", lambda folder, seed=seed: train(seed, folder)
        )
    ]


def student_records(
    setting: str,
    method: str,
    seed: int,
    history: list[dict],
    further: Mapping[str, float],
    seconds: float,
) -> list[Record]:
    """Return one student's numbers: last and best epoch, calibration, fidelity."""
    curve = tuple(entry["accuracy"] for entry in history)
    last = history[-1]
    measured = ("nll", "ece", "agreement", "teacher_kl")
    values = {
        "last_accuracy": curve[-1],
        "best_accuracy": max(curve),
        **{metric: last[metric] for metric in measured if metric in last},
        **further,
    }
    return [
        Record(
            method,
            seed,
            metric,
            float(value),
            seconds,
            setting,
            curve if metric == "last_accuracy" else (),
        )
        for metric, value in values.items()
    ]


def build(spec: NetworkSpec, classes: int) -> Network:
    """Return the network of a specification for that many classes."""
    name, arguments = spec
    return create(name, classes=classes, **arguments)
