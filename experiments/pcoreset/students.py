"""How the students of a method are made, trained, tested and asked for predictions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

import jaxkd
from experiments.common.training import build
from experiments.pcoreset.config import STUDENTS, Config
from experiments.pcoreset.tasks import EmbeddedImages
from jaxkd import data, methods, networks
from jaxkd.checks import unknown_name
from jaxkd.evaluation.classification import evaluator
from jaxkd.interop import load_torch_resnet
from jaxkd.network import Network
from jaxkd.types import Program, Variables


@dataclass(frozen=True)
class Student:
    """How the students of some methods are trained and used; compiled once for all.

    Attributes:
        program: ``steps ->`` the program that trains one.
        evaluate: ``variables -> metrics`` on the test images.
        predict: ``(variables, positions in the pool) -> (probabilities, features)``.
        distilled: whether it learns from a teacher.
    """

    program: Callable[[int], Program]
    evaluate: Callable[[Variables], dict[str, float]]
    predict: Callable[[Variables, np.ndarray], tuple[np.ndarray, np.ndarray]]
    distilled: bool


def learning_rate(config: Config, steps: int) -> optax.Schedule:
    """Return the rate over the steps of a round.

    Raises:
        ValueError: an unknown schedule.
    """
    top, warmup = config.learning_rate, max(steps // 10, 1)
    schedules = {
        "constant": lambda: optax.constant_schedule(top),
        "linear": lambda: optax.join_schedules(
            [
                optax.linear_schedule(0.0, top, warmup),
                optax.linear_schedule(top, 0.0, max(steps - warmup, 1)),
            ],
            [warmup],
        ),
        "cosine": lambda: optax.cosine_decay_schedule(top, steps),
    }
    if config.schedule not in schedules:
        raise ValueError(unknown_name("schedule", config.schedule, schedules))
    return schedules[config.schedule]()


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Return AdamW for a round's steps."""
    rate = learning_rate(config, steps)
    return optax.adamw(rate, weight_decay=config.weight_decay)


def base_network(config: Config, classes: int) -> Network:
    """Return the student's network with weights to be drawn.

    Raises:
        ValueError: an unknown student.
    """
    if config.student not in STUDENTS:
        raise ValueError(unknown_name("student", config.student, STUDENTS))
    return build(STUDENTS[config.student][0], classes)


def make_network(config: Config, classes: int) -> Network:
    """Return the student's network, pre-trained where the configuration has weights.

    Raises:
        FileNotFoundError: the weights are not there.
    """
    network = base_network(config, classes)
    if not config.weights:
        return network
    _, found = load_torch_resnet(data.data_file(config.weights))

    def init(key: PRNGKeyArray) -> Variables:
        new = network.init(key)
        params = {**found["params"], "fc": new["params"]["fc"]}
        return {"params": params, "stats": found["stats"]}

    return replace(network, init=init, spec=None)


def distilling(config: Config, network: Network, steps: int, classes: int) -> Program:
    """Return the program of ActiveKD: a dual-head student and a cached teacher."""
    student = networks.dual_head(network, STUDENTS[config.student][1], classes)
    return jaxkd.distill(
        student, None, methods.cached(methods.dho()), make_optimizer(config, steps)
    )


def make_student(
    config: Config, task: EmbeddedImages, distilled: bool, ce_share: float
) -> Student:
    """Return how students are trained, tested and asked for predictions.

    Args:
        config: of the training.
        task: to learn from.
        distilled: by ActiveKD, or from labels alone.
        ce_share: α when a distilled student is tested.
    """
    classes = task.train.classes
    network = deployed = make_network(config, classes)
    predicting = network
    if distilled:
        features = STUDENTS[config.student][1]
        predicting = networks.dual_head(network, features, classes)
        deployed = networks.dual_head(
            network, features, classes, alpha=ce_share, beta=config.kd_temperature
        )
    made: dict[int, Program] = {}

    def program(steps: int) -> Program:
        # A schedule that knows no end needs no program of its own.
        steps = 1 if config.schedule == "constant" else steps
        if steps not in made:
            made[steps] = (
                distilling(config, network, steps, classes)
                if distilled
                else jaxkd.distill(
                    network,
                    None,
                    methods.cross_entropy(),
                    make_optimizer(config, steps),
                )
            )
        return made[steps]

    evaluate = evaluator(deployed, task.test, transform=task.test_transform)
    return Student(program, evaluate, predictor(predicting, task), distilled)


def predictor(network: Network, task: EmbeddedImages, batch_size: int = 256):
    """Return ``(variables, positions in the pool) -> (probabilities, features)``."""

    @jax.jit
    def forward(variables: Variables, image: Any):
        outputs, _ = network.apply(variables, image, taps=("pooled",))
        return jax.nn.softmax(outputs.logits), outputs.features["pooled"]

    def predict(variables: Variables, positions: np.ndarray):
        found = []
        for start in range(0, len(positions), batch_size):
            rows = positions[start : start + batch_size]
            # One shape, so that it is compiled once.
            batch = task.train.take(np.resize(rows, batch_size))
            if task.test_transform is not None:
                batch = task.test_transform(batch, None)
            outputs = forward(variables, batch["image"])
            found.append([np.asarray(x)[: len(rows)] for x in outputs])
        probs, features = (np.concatenate(x) for x in zip(*found, strict=True))
        return probs, features

    return predict
