"""The small run of FIRST: noisy digits, of which a perceptron is too sure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification
from experiments.common.configs import NetworkConfig, OptimizerConfig
from jaxkd import data, methods
from jaxkd.evaluation.calibration import calibration_error, search_temperature
from jaxkd.evaluation.classification import predictor
from jaxkd.losses import recalibrate_top_k, smooth_top_k, top_k_log_probs
from jaxkd.losses.first import Space
from jaxkd.reporting.run import Arm, Run, Task
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
        optimizer: of both.
        smoothing: what the best class loses in the paper's alternative.
    """

    noise: float = 0.35
    validation: int = 300
    k: int = 5
    teacher: int = 256
    student: int = 32
    epochs: int = 60
    batch_size: int = 64
    optimizer: OptimizerConfig = OptimizerConfig("adam", 3e-3, schedule="constant")
    smoothing: float = 0.1


def noisy_digits(config: Config, seed: int) -> dict[str, Any]:
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
    return {
        name: data.Source(
            f"noisy digits {seed}/{name}",
            {"image": image[rows], "label": label[rows]},
            10,
        )
        for name, rows in zip(("train", "validation", "test"), parts, strict=True)
    }


def reliability(confidence: Any, correct: Any) -> dict[str, float]:
    """Return the accuracy, the paper's error, over ten bins, and its trust score."""
    accuracy = float(jnp.mean(correct))
    error = float(
        calibration_error(jnp.asarray(confidence), jnp.asarray(correct), BINS)
    )
    return {"last_accuracy": accuracy, "ece10": error, "trust": accuracy - error}


def of_images(logits: np.ndarray, source: data.Source) -> dict[str, float]:
    """Return the reliability of what a network says of images."""
    p = jax.nn.softmax(jnp.asarray(logits))
    return reliability(p.max(-1), p.argmax(-1) == source.arrays["label"])


def best_of(logits: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Return what a cache holds: the k best classes, best first."""
    ids, log_probs = top_k_log_probs(jnp.asarray(logits), k)
    return {
        "teacher_ids": np.asarray(ids, np.uint8),
        "teacher_log_probs": np.asarray(log_probs),
    }


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Return a teacher of a seed's images, what a cache of it takes, and students."""
    split = noisy_digits(config, seed)
    network, student = (
        NetworkConfig("mlp", {"widths": [width]}).build(10)
        for width in (config.teacher, config.student)
    )
    images = Classification(
        split["train"],
        split["test"],
        config.epochs,
        config.batch_size,
        config.optimizer,
        evaluate_every=10,
    )
    teacher = images.teacher(run, network, "", seed)
    variables = teacher.deployed.init(jax.random.key(0))
    logits = {name: predictor(network, x)(variables) for name, x in split.items()}
    best = {name: best_of(z, config.k) for name, z in logits.items()}
    mass = np.exp(best["test"]["teacher_log_probs"]).sum(-1).mean()
    cache = {
        "teacher_ids": best["train"]["teacher_ids"],
        # Halves are as much as a cache keeps.
        "teacher_log_probs": best["train"]["teacher_log_probs"].astype(np.float16),
    }

    def stated(values: dict[str, float]) -> Any:
        return lambda state, history: values

    untrained = Task("", images.batches, None)
    scores = {**of_images(logits["test"], split["test"]), "top5_mass": float(mass)}
    yield replace(teacher, measure=stated(scores)), untrained
    on_disk = replace(untrained, setting="an example on disk")
    for name, size in (
        ("top5", sum(x[0].nbytes for x in cache.values())),
        ("all_logits", logits["train"][0].nbytes),
    ):
        yield Arm(name, None, network, measure=stated({"bytes": float(size)})), on_disk

    cached: Any = data.Joined(split["train"], cache)
    task = replace(images, train=cached).task()
    predict = predictor(student, split["test"])
    rows: dict[str, tuple[Method, dict[str, float]]] = {
        "sft": (methods.cross_entropy(), {}),
        "direct": (methods.first(), {}),
        "smoothed": (smoothed(config.smoothing), {}),
    }
    for space, options in SEARCH.items():
        found = searched(split["validation"], best["validation"], space, options)
        method = methods.first(found["temperature"], space=space)
        rows[f"first_{space}"] = method, found
    for name, (method, found) in rows.items():

        def measure(state: Any, history: Any, found=found) -> dict[str, float]:
            scores = of_images(predict(state.student), split["test"])
            return {"ece10": scores["ece10"], "trust": scores["trust"], **found}

        yield (
            Arm(name, images.distill(student, None, method), student, measure=measure),
            task,
        )


def searched(
    source: data.Source, best: dict[str, np.ndarray], space: Space, options: dict
) -> dict[str, float]:
    """Return the temperature that validation images ask for, and what it leaves."""
    log_probs = jnp.asarray(best["teacher_log_probs"])
    correct = jnp.asarray(best["teacher_ids"][:, 0] == source.arrays["label"])
    temperature, error = search_temperature(
        log_probs, correct, space=space, bins=BINS, **options
    )
    calibrated = recalibrate_top_k(log_probs, temperature, space)
    return {
        "temperature": temperature,
        "validation_ece10": error,
        "kept_best": float(jnp.mean(calibrated[:, 0] == calibrated.max(-1))),
    }


def smoothed(amount: float) -> Method:
    """Return distillation from smoothed targets, in place of a temperature."""
    method = methods.first()

    def loss(variables, student, teacher, batch, key, step):
        smooth = smooth_top_k(jnp.asarray(batch["teacher_log_probs"]), amount)
        batch = {**batch, "teacher_log_probs": smooth}
        return method.loss(variables, student, teacher, batch, key, step)

    return method._replace(loss=loss)
