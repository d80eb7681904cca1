"""Distillation of the students that the search has found, and what training costs."""

import time
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

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
from experiments.diswot.config import Config
from experiments.diswot.scoring import (
    Architecture,
    Images,
    Scorer,
    depth_space,
    once,
    scoring_batch,
)
from jaxkd import combine, data, distill, models, networks
from jaxkd.evaluation.classification import predictor
from jaxkd.methods import cross_entropy, kd
from jaxkd.network import Network
from jaxkd.papers.diswot import diswot
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Method, Program

COST = "cost"
PROTOCOL_STEPS = 240 * (50_000 // 64)
"""Steps of one training of the benchmarks' protocol on CIFAR-100."""


def measure_cost(config: Config, dataset: data.Dataset) -> list[Record]:
    """Return the time to score S1, compilation included, and that to train it.

    The training's is reckoned from some steps of one student with its teacher.
    """
    started = time.perf_counter()
    images, space = Images.of(dataset), depth_space(config)
    batch = scoring_batch(dataset, config.scored_examples, 0)
    score = Scorer(config, images, space).scorer(0, batch)
    architectures = space.architectures()
    for architecture in architectures:
        score(architecture)
    searching = time.perf_counter() - started

    program = student_program(
        config, images, config.timed_student, config.teacher_depth
    )
    batch = scoring_batch(dataset, 64, 0)
    state = once(program.init)(jax.random.key(0), batch)
    step = jax.jit(program.step, donate_argnums=0)
    seconds = []
    for _ in range(config.timed_steps + 1):
        started = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    # The first step compiles.
    training = PROTOCOL_STEPS * float(np.median(seconds[1:]))
    values = {
        "search_seconds": searching,
        "step_seconds": training / PROTOCOL_STEPS,
        "training_hours": training / 3600,
        "search_speedup": len(architectures) * training / searching,
        "one_training_over_search": training / searching,
    }
    return [
        Record("diswot", 0, metric, value, searching, COST)
        for metric, value in values.items()
    ]


def student_program(
    config: Config, images: Images, blocks: Architecture, teacher_depth: int
) -> Program:
    """Return the benchmarks' distillation of a student of S1 by L_DisWOT†."""
    student, teacher = (
        models.cifar_resnet(
            depth, images.classes, widths=config.widths, channels_in=images.channels
        )
        for depth in (blocks, teacher_depth)
    )
    optimizer = sgd_milestones(0.05, 5e-4, (150, 180, 210), 240)(PROTOCOL_STEPS)
    return distill(mapped(student), mapped(teacher), objectives()["diswot"], optimizer)


def mapped(network: Network) -> Network:
    """Return a ResNet with its class activation maps as a tap."""
    return networks.with_class_maps(network, "stage3")


def objectives() -> dict[str, Method]:
    """Return the compared objectives; ``diswot`` is the paper's L_DisWOT†."""
    labels, logits = (0.1, cross_entropy()), (0.9, kd(4.0))
    return {
        "cross_entropy": cross_entropy(),
        "kd": combine(labels, logits),
        "diswot": combine(labels, logits, (1.0, diswot("stage3"))),
    }


def chosen(
    config: Config, scores: dict[Architecture, float]
) -> dict[str, Architecture]:
    """Return the blocks of the students to distil, by their names."""
    order = sorted(scores, key=scores.__getitem__)
    known = {"found": order[-1], "median": order[len(order) // 2]}
    return {
        name: known[name] if name in known else tuple(map(int, name.split("-")))
        for name in config.students
    }


def distil_students(
    config: Config, seeds: Sequence[int], run: Run, scores: dict[Architecture, float]
) -> list[Record]:
    """Return the chosen students after distillation, one table a teacher."""
    dataset = data.load(config.distilled_dataset)
    train, test = transforms(dataset, augment=True)
    optimizer = (
        sgd_milestones(config.learning_rate, 5e-4, config.milestones, config.epochs)
        if config.milestones
        else adam_cosine(config.learning_rate)
    )
    task = Task(
        setting="",
        train=dataset.train,
        test=dataset.test,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=optimizer,
        transform=train,
        test_transform=test,
        evaluate_every=max(config.epochs // 4, 1),
    )
    images = Images.of(dataset)

    def spec(depth: int | Architecture) -> NetworkSpec:
        arguments = {"widths": config.widths, "channels_in": images.channels}
        return "cifar_resnet", {"depth": depth, **arguments}

    records = []
    for depth in config.teachers:
        mine = replace(task, setting=f"distillation, ResNet-{depth}")
        started = time.perf_counter()
        teacher = build(spec(depth), dataset.train.classes)
        variables = train_on_labels(run, mine, teacher, f"teacher-{depth}")
        seconds = time.perf_counter() - started
        logits = predictor(teacher, mine.test, transform=test)(variables)
        records += teacher_records(mine, logits, seconds)
        taught = mapped(teacher.with_variables(variables))
        for name, blocks in chosen(config, scores).items():
            student = build(spec(blocks), dataset.train.classes)
            for method in config.methods:
                records += train_students(
                    run,
                    mine,
                    f"{name} {method}",
                    mine.distill(mapped(student), taught, objectives()[method]),
                    student,
                    seeds,
                    teacher_logits=logits,
                )
    return records
