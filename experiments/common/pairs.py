"""Experiments that compare methods on pairs of networks, from digits to CIFAR-100."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optax

from experiments.common.classification import (
    Classification,
    ImagesConfig,
    Programs,
    image_batch,
)
from experiments.common.configs import OptimizerConfig, choose
from experiments.common.networks import PAIRS
from jaxkd.network import Network
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Program


@dataclass(frozen=True)
class PairsConfig:
    """What is trained.

    Attributes:
        pairs: names of networks in ``experiments.common.networks.PAIRS``.
        methods: the rows; empty for all.
        train_examples: that the students see, one table each; 0 for all.
        task: the images, and how long students learn them.
        optimizer: of the students.
        teacher_epochs: of the teacher, which sees all examples.
        teacher_optimizer: of the teacher.
    """

    pairs: tuple[str, ...] = ("mlp",)
    methods: tuple[str, ...] = ()
    train_examples: tuple[int, ...] = (100, 200)
    task: ImagesConfig = ImagesConfig()
    optimizer: OptimizerConfig = OptimizerConfig("adam", 1e-2)
    teacher_epochs: int = 60
    teacher_optimizer: OptimizerConfig = OptimizerConfig("adam", 3e-3)


Measure = Callable[
    [Classification, Network, np.ndarray], Callable[[Any, History], Values]
]
"""``(data, student, teacher's logits of the test) ->`` what measures a student."""


def _nothing(*_: Any) -> Callable[[Any, History], Values]:
    return lambda state, history: {}


def pair_arms(
    programs: Programs, measure: Measure = _nothing
) -> Callable[[Any, Run, int], Iterator[tuple[Arm, Task]]]:
    """Return the arms of an experiment: a teacher of each pair, and its students.

    Each number of training examples has a table, or the pair where it takes all.

    Args:
        programs: of the rows.
        measure: what else is measured of the students.
    """

    def arms(config: PairsConfig, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
        pairs = choose("pair", config.pairs, PAIRS)
        images = config.task.load(config.optimizer)
        for pair, spec in pairs.items():
            student, network = spec.networks(images.classes)
            untaught = programs(config, student, network, optax.identity())
            names = list(choose("method", config.methods, untaught))
            learnt = replace(
                images,
                epochs=config.teacher_epochs,
                optimizer=config.teacher_optimizer,
            )
            teacher = learnt.teacher(run, network, pair, seed)
            logits = images.logits(teacher.deployed)
            mine = replace(
                images, optimizer=config.optimizer.scaled(spec.learning_rate)
            )
            for examples in config.train_examples:
                setting = f"{examples} images" if examples else pair
                some = mine.subset(examples)
                yield teacher, some.task(setting)
                optimizer = some.optimizer.build(some.steps, some.epochs)
                rows = programs(config, student, teacher.deployed, optimizer)
                task = some.task(setting, logits)
                further = measure(some, student, logits)
                for name in names:
                    yield Arm(name, rows[name], student, measure=further), task

    return arms


def pair_programs(
    programs: Programs, method: str, classes: int = 100
) -> Callable[[Any], dict[str, tuple[Program, Batch]]]:
    """Return ``config ->`` one row's program of each pair, for a batch of CIFAR."""

    def full_scale(config: PairsConfig) -> dict[str, tuple[Program, Batch]]:
        found = {}
        for pair in config.pairs:
            spec = PAIRS[pair]
            student, teacher = spec.networks(classes)
            epochs = config.task.epochs
            optimizer = config.optimizer.scaled(spec.learning_rate)
            rows = programs(config, student, teacher, optimizer.build(epochs, epochs))
            found[pair] = rows[method], image_batch(config.task.batch_size, 32)
        return found

    return full_scale
