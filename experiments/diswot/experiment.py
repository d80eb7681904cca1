"""DisWOT: students for a teacher found without training any.

Dong, Li, Wei 2023 (arXiv:2303.15678) score an untrained student by how close its
relations between classes and between examples are to an untrained teacher's, and search
with that score.

``small`` scores the 64 CIFAR ResNets of the paper's first space against a ResNet-56 on
real CIFAR-100 crops, compares the order with the accuracies that the authors publish of
all 64 after distillation, and with cheaper scores; evolution and random search look for
the best of them, and of NAS-Bench-201's cells; the search's time is set against the
training it replaces; and the found student is distilled, briefly, on digits. ``paper``
searches with the paper's budget and distils on CIFAR-100.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.common.classification import Classification, image_batch
from experiments.common.configs import CIFAR_SGD, choose
from experiments.diswot.config import PRESETS, Architecture, Config
from experiments.diswot.searching import (
    CELL_SEARCH,
    CELLS,
    DEPTH_SEARCH,
    MAIN,
    rank,
    saved_scores,
    scorer,
    scoring_batch,
    search_cells,
    search_depths,
)
from jaxkd import combine, distill, networks, search
from jaxkd.methods import cross_entropy, kd
from jaxkd.network import Network
from jaxkd.papers.diswot import diswot
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, Run, Task, records, run_arms
from jaxkd.reporting.tables import PaperValue
from jaxkd.types import Batch, Method, Program

declare(
    best_score=Metric("best score", higher_is_better=True),
    chosen_accuracy=Metric("accuracy of the chosen %", higher_is_better=True),
)

COST = "cost"
CLAIMS = [
    contrast("diswot", 0.3, "kendall", setting=MAIN),
    contrast("diswot", "depth", "kendall", setting=MAIN),
    contrast(
        "evolution",
        "random",
        "best_score",
        0.05,
        "non-inferiority",
        setting=DEPTH_SEARCH,
        because="half the deviation of the best score from seed to seed",
    ),
    observed("diswot", ">", 180.0, "search_speedup", setting=COST),
]
PAPER = {
    f"{COST}/diswot": {"search_speedup": PaperValue(180.0, "abstract", checked=True)}
}

BEST = (5, 5, 7)
"""The student of S1 that the authors find best after distillation."""

PROTOCOL_STEPS = 240 * (50_000 // 64)
"""Steps of one training of the benchmarks' protocol on CIFAR-100."""


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


def student_program(
    config: Config,
    blocks: Architecture,
    depth: int,
    classes: int = 100,
    channels: int = 3,
) -> Program:
    """Return the benchmarks' distillation of a student of S1 by L_DisWOT†."""
    student, teacher = (
        mapped(config.resnet(net, classes, channels)) for net in (blocks, depth)
    )
    optimizer = CIFAR_SGD.build(PROTOCOL_STEPS, epochs=240)
    return distill(student, teacher, objectives()["diswot"], optimizer)


def measure_cost(config: Config, images: Classification, _: Path) -> list[Record]:
    """Return the time to score S1, compilation included, and that to train it.

    The training's is reckoned from some steps of one student with its teacher.
    """
    started = time.perf_counter()
    score = scorer(config, images, config.space).against(
        jax.random.key(0), scoring_batch(images, 0)
    )
    architectures = config.space.architectures()
    for architecture in architectures:
        score(architecture)
    searching = time.perf_counter() - started

    pair, shape = (config.timed_student, config.teacher_depth), images.image_shape
    program = student_program(config, *pair, images.classes, shape[-1])
    batch = scoring_batch(replace(images, batch_size=64), 0)
    state = search.jit_once(program.init)(jax.random.key(0), batch)
    step = jax.jit(program.step, donate_argnums=0)
    seconds = []
    for _step in range(config.timed_steps + 1):
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
    return records(COST, "diswot", 0, values, searching)


def chosen(
    config: Config, scores: Mapping[Architecture, float]
) -> dict[str, Architecture]:
    """Return the blocks of the students to distil, by their names."""
    order = sorted(scores, key=scores.__getitem__)
    known = {"found": order[-1], "median": order[len(order) // 2]}
    return {
        name: known[name] if name in known else tuple(map(int, name.split("-")))
        for name in config.students
    }


def arms(
    students: Mapping[str, Architecture], config: Config, run: Run, seed: int
) -> Iterator[tuple[Arm, Task]]:
    """Yield trained teachers, and students distilled by every method."""
    images = config.task.load(config.optimizer)
    shape = images.classes, images.image_shape[-1]
    for depth in config.teachers:
        setting = f"distillation, ResNet-{depth}"
        teacher = images.teacher(run, config.resnet(depth, *shape), setting, seed)
        yield teacher, images.task(setting)
        task = images.task(setting, images.logits(teacher.deployed))
        for name, blocks in students.items():
            student = config.resnet(blocks, *shape)
            both = mapped(student), mapped(teacher.deployed)
            for method in choose("method", config.methods, objectives()):
                program = images.distill(*both, objectives()[method])
                yield Arm(f"{name} {method}", program, student), task


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Score, search, time and distil."""
    choose("method", config.methods, objectives())
    images = config.scored.load(config.optimizer)
    found = rank(config, images, run, seeds)
    scores = {seed: saved_scores(config, run, seed) for seed in seeds}
    for seed in seeds:
        look = partial(search_depths, config, scores[seed], seed)
        found += run.part(f"{DEPTH_SEARCH}/seed{seed}", look)
    cells = scorer(config, images, CELLS)
    for seed in seeds:
        look = partial(search_cells, config, images, cells, seed)
        found += run.part(f"{CELL_SEARCH}/seed{seed}", look)
    found += run.part(COST, partial(measure_cost, config, images))
    students = chosen(config, scores[seeds[0]])
    return found + run_arms(partial(arms, students), config, seeds, run)


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return L_DisWOT† of the best distilled student with each teacher."""
    return {
        f"resnet{depth}-{'-'.join(map(str, BEST))}": (
            student_program(config, BEST, depth),
            image_batch(config.task.batch_size, 32),
        )
        for depth in config.teachers
    }


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5},
)
