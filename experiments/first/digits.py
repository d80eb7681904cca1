"""The small run of FIRST: noisy digits, of which a perceptron is too sure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.training import Task, build, student_records, train_on_labels
from jaxkd import data, methods, training
from jaxkd.evaluation.calibration import calibration_error, search_temperature
from jaxkd.evaluation.classification import evaluator, predictor
from jaxkd.losses import recalibrate_top_k, smooth_top_k, top_k_log_probs
from jaxkd.losses.first import Space
from jaxkd.network import Network
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Method

BINS = 10
LOG_GRID = tuple(np.arange(0.5, 5.01, 0.25).tolist())
PROBABILITY_GRID = tuple(round(0.1 * i, 1) for i in range(1, 11))
SEARCH: dict[Space, dict[str, Any]] = {
    "log": {"grid": LOG_GRID},
    "probability": {"grid": PROBABILITY_GRID, "step": 0.02},
}
"""Temperatures that are tried; those in probability space are the paper's."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        noise: deviation of what is added to pixels of 0 to 1, once for each image.
        validation: images to find the temperature by.
        k: classes of the teacher's that are kept.
        teacher: width of the teacher's hidden layer.
        student: width of the student's.
        epochs: of both.
        batch_size: of both.
        learning_rate: of Adam.
        smoothing: what the best class loses in the paper's alternative.
    """

    noise: float = 0.35
    validation: int = 300
    k: int = 5
    teacher: int = 256
    student: int = 32
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 3e-3
    smoothing: float = 0.1


@dataclass(frozen=True)
class Split:
    """One seed's images, as `jaxkd.data.Source`."""

    train: Any
    validation: Any
    test: Any


def noisy_digits(config: Config, seed: int) -> Split:
    """Return half of the digits to train on, some to validate and the rest to test."""
    whole = data.digits()
    image, label = (
        np.concatenate([whole.train.arrays[name], whole.test.arrays[name]])
        for name in ("image", "label")
    )
    rng = np.random.default_rng(seed)
    image = image + rng.normal(0, config.noise, image.shape).astype(np.float32)
    order, half = rng.permutation(len(label)), len(label) // 2
    parts = np.split(order, [half, half + config.validation])
    return Split(
        *(
            data.Source(
                f"noisy digits {seed}/{name}",
                {"image": image[rows], "label": label[rows]},
                10,
            )
            for name, rows in zip(("train", "validation", "test"), parts, strict=True)
        )
    )


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train a teacher of each seed's images, and students of all methods."""
    return [record for seed in seeds for record in _run_seed(config, seed, run)]


def _run_seed(config: Config, seed: int, run: Run) -> list[Record]:
    split = noisy_digits(config, seed)
    task = Task(
        setting="",
        train=split.train,
        test=split.test,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=lambda _: optax.adam(config.learning_rate),
        evaluate_every=10,
    )
    started = time.perf_counter()
    teacher, student = (
        build(("mlp", {"widths": [width]}), 10)
        for width in (config.teacher, config.student)
    )
    variables = train_on_labels(run, task, teacher, f"teacher{seed}")
    logits = {
        name: predictor(teacher, source)(variables)
        for name, source in vars(split).items()
    }
    records = run.part(
        f"teacher scores/seed{seed}",
        lambda _: _teacher_records(
            split.test, logits["test"], config.k, seed, time.perf_counter() - started
        ),
    )
    ids, log_probs = _best(logits["train"], config.k)
    cached: Any = data.Joined(
        split.train,
        {"teacher_ids": ids, "teacher_log_probs": log_probs.astype(np.float16)},
    )
    objectives: dict[str, tuple[Method, dict[str, float]]] = {
        "sft": (methods.cross_entropy(), {}),
        "direct": (methods.first(), {}),
        "smoothed": (_smoothed(config.smoothing), {}),
    }
    for space, options in SEARCH.items():
        temperature, found = _searched(
            split.validation, logits["validation"], config.k, space, options
        )
        objectives[f"first_{space}"] = methods.first(temperature, space=space), found
    for name, (method, found) in objectives.items():
        records += run.part(
            f"{name}/seed{seed}",
            lambda folder, name=name, method=method, found=found: _student(
                run, task, cached, student, name, method, seed, found, folder
            ),
        )
    return records


def _best(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids, log_probs = top_k_log_probs(jnp.asarray(logits), k)
    return np.asarray(ids, np.uint8), np.asarray(log_probs)


def _searched(
    source: data.Source, logits: np.ndarray, k: int, space: Space, options: dict
) -> tuple[float, dict[str, float]]:
    """Return the temperature that validation images ask for, and what it leaves."""
    ids, log_probs = _best(logits, k)
    correct = jnp.asarray(ids[:, 0] == source.arrays["label"])
    temperature, error = search_temperature(
        jnp.asarray(log_probs), correct, space=space, bins=BINS, **options
    )
    calibrated = recalibrate_top_k(jnp.asarray(log_probs), temperature, space)
    return temperature, {
        "temperature": temperature,
        "validation_ece10": error,
        "kept_best": float(jnp.mean(calibrated[:, 0] == calibrated.max(-1))),
    }


def _smoothed(amount: float) -> Method:
    """Return distillation from smoothed targets, in place of a temperature."""
    method = methods.first()

    def loss(variables, student, teacher, batch, key, step):
        smooth = smooth_top_k(jnp.asarray(batch["teacher_log_probs"]), amount)
        batch = {**batch, "teacher_log_probs": smooth}
        return method.loss(variables, student, teacher, batch, key, step)

    return method._replace(loss=loss)


def _calibration(logits: np.ndarray, source: Any) -> dict[str, float]:
    """Return the paper's error, over ten bins, and its trust score."""
    p = jax.nn.softmax(jnp.asarray(logits))
    correct = p.argmax(-1) == source.arrays["label"]
    error = float(calibration_error(p.max(-1), correct, BINS))
    return {"ece10": error, "trust": float(correct.mean()) - error}


def _teacher_records(
    test: data.Source, logits: np.ndarray, k: int, seed: int, seconds: float
) -> list[Record]:
    ids, log_probs = _best(logits, k)
    accuracy = float(np.mean(ids[:, 0] == test.arrays["label"]))
    scores = {
        "last_accuracy": accuracy,
        **_calibration(logits, test),
        "top5_mass": float(np.exp(log_probs).sum(-1).mean()),
    }
    # What a cache holds of an example: integers of a byte and halves, or floats.
    stored = {
        "top5": ids[0].nbytes + log_probs[0].astype(np.float16).nbytes,
        "all_logits": logits[0].nbytes,
    }
    return [
        *(Record("teacher", seed, name, x, seconds) for name, x in scores.items()),
        *(
            Record(name, seed, "bytes", float(x), 0.0, "an example on disk")
            for name, x in stored.items()
        ),
    ]


def _student(
    run: Run,
    task: Task,
    cached: Any,
    student: Network,
    name: str,
    method: Method,
    seed: int,
    found: dict[str, float],
    folder: Path,
) -> list[Record]:
    started = time.perf_counter()
    evaluate = evaluator(student, task.test)
    with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        state, history = training.fit(
            task.distill(student, None, method),
            data.batches(cached, task.batch_size, epochs=task.epochs, seed=seed),
            key=jax.random.key(seed),
            steps=task.steps,
            evaluate=lambda state: evaluate(state.student),
            evaluate_every=task.evaluate_every * task.steps_per_epoch,
            checkpoints=checkpoints,
            progress=run.progress,
            name=f"{name} seed {seed}",
        )
    logits = predictor(student, task.test)(state.student)
    measured = {**_calibration(logits, task.test), **found}
    seconds = time.perf_counter() - started
    return student_records("", name, seed, history, measured, seconds)
