"""Data pruning: train on a part, with a teacher of all the data.

Ben-Baruch et al. 2025 (arXiv:2403.07854) keep a fraction f of the training data, and
let a teacher that was trained on all of them help. It lifts every rule of pruning, at
random it is then as good as by any score, and its share α should grow as f falls.

``small`` prunes digits by eleven rules and simulates the theory's ridge regression,
``cifar`` takes 5,000 images of CIFAR-10 and a small ResNet, ``gpu`` 20,000 images;
``paper`` is ResNet-32 on CIFAR-100. All networks take as many steps at every f.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxkd
from experiments.common.classification import Classification, image_batch
from experiments.common.configs import choose
from experiments.data_pruning.config import NETWORKS, PRESETS, Config
from experiments.data_pruning.scoring import RULES, batches, pools
from jaxkd import data
from jaxkd.evaluation.classification import evaluator
from jaxkd.methods import cross_entropy
from jaxkd.papers.data_pruning import pruned_kd, ridge_self_distill
from jaxkd.reporting.claims import Claim, all_of, contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.quantities import Quantity, cell
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, History, Run, Task, Values, records, run_arms
from jaxkd.selection import keep_fraction
from jaxkd.types import Batch, Program

declare(
    classes_lost=Metric("classes lost %"),
    weight_error=Metric("error of weights", higher_is_better=False),
)

RIDGE, TEACHER_PARTS = "ridge, α = {:g}", (0.2, 0.4, 0.7, 1.0)
HALF_POINT = "half a point counts as no gain"


def table(config: Config, kind: str, fraction: float) -> str:
    """Return a table's name; ``kind`` is random, rules or teachers."""
    return f"{config.title}{kind}, f = {fraction:g}"


def claims(config: Config) -> list[Claim]:
    """Return what a preset's tables are to show; margins were set before any run."""
    accuracy, rules = "last_accuracy", config.rules or tuple(RULES)

    def gain(f: float) -> Quantity:
        """Return by how much the teacher's labels alone beat the labels alone."""
        setting = table(config, "random", f)
        return cell("alpha 1", setting=setting) - cell("alpha 0", setting=setting)

    found = [
        contrast(
            *(f"alpha {alpha:g}", "alpha 0", accuracy),
            setting=table(config, "random", f),
        )
        for f in config.fractions
        for alpha in config.alphas
        if f <= 0.1 and alpha in (0.5, 1.0)
    ]
    for f in config.rule_fractions:
        setting = table(config, "rules", f)
        found += [
            contrast("el2n + KD", "el2n", accuracy, setting=setting),
            all_of(
                f"KD lifts every rule ({setting})",
                [contrast(f"{r} + KD", r, accuracy, setting=setting) for r in rules],
            ),
            contrast("random + KD", "el2n + KD", accuracy, setting=setting),
            *(
                contrast(
                    *("random + KD", f"{rule} + KD", accuracy, 0.005),
                    "non-inferiority",
                    setting=setting,
                    because=HALF_POINT,
                )
                for rule in ("grand", "forgetting", "memorization")
                if rule in rules
            ),
        ]
    if len(config.fractions) > 1:
        falls = [
            contrast(
                *(gain(low), gain(high), accuracy),
                setting=table(config, "random", low),
                lower=False,
            )
            for low, high in pairwise(config.fractions)
        ]
        found.append(all_of(f"{config.title}KD gains less with every rise of f", falls))
    whole = table(config, "random", 1.0)
    found.append(
        contrast(
            *(gain(1.0), 0.005, accuracy),
            setting=whole,
            lower=True,
            name=f"KD gains less than half a point ({whole})",
        )
    )
    for f in config.teacher_fractions[: 1 if config.teachers else 0]:
        found.append(
            contrast(
                *(config.network, config.teachers[-1], accuracy, 0.005),
                "non-inferiority",
                setting=table(config, "teachers", f),
                because=HALF_POINT,
            )
        )
    if config.ridge_repeats:
        falls = [
            contrast(
                *(f"f_t = {high:g}", f"f_t = {low:g}", "weight_error"),
                setting=RIDGE.format(1),
            )
            for low, high in pairwise(TEACHER_PARTS)
        ]
        found.append(
            all_of("ridge: the error falls as the teacher's part grows", falls)
        )
    return found


def load(config: Config, seed: int) -> Classification:
    """Return the data set of a seed, to score, to prune and to test on."""
    images = config.task.load(config.optimizer).divided(config.test_examples, seed)
    if not config.train_examples:
        return images
    train: Any = images.train
    return replace(images, train=train.subset(config.train_examples, seed=seed))


def accuracies(history: History) -> Values:
    """Return the last evaluation's accuracy and likelihood."""
    return {"last_accuracy": history[-1]["accuracy"], "nll": history[-1]["nll"]}


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield the teacher, random parts by α, parts by rule, and teachers by size."""
    rules = choose("rule", config.rules, RULES)
    choose("network", (config.network, *config.teachers), NETWORKS)
    images, key = load(config, seed), jax.random.key(seed)
    student = NETWORKS[config.network].build(images.classes)
    test = cache(
        lambda net: evaluator(net, images.test, transform=images.test_transform)
    )

    def task(setting: str, kept: np.ndarray | None = None) -> Task:
        source = images.train if kept is None else data.Subset(images.train, kept)
        return Task(
            setting,
            lambda seed: batches(config, images, source, seed),
            config.steps,
            test,
            checkpoint_every=5000,
            summary=accuracies,
            input_shape=images.image_shape,
        )

    @cache
    def teacher(name: str) -> Arm:
        network = NETWORKS[name].build(images.classes)
        program = jaxkd.distill(
            network, None, cross_entropy(), config.optimizer.build(config.steps)
        )
        return run.teacher(Arm("teacher", program, network), task(name), seed)

    @cache
    def program(name: str, alpha: float) -> Program:
        method = pruned_kd(alpha, config.temperature)
        optimizer = config.optimizer.build(config.steps)
        return jaxkd.distill(student, teacher(name).deployed, method, optimizer)

    own, file = config.network, run.folder / "scores" / f"seed{seed}.npz"
    pool = pools(config, images, teacher(own).deployed, seed, file)
    for f in config.fractions:
        pruned = task(
            table(config, "random", f),
            keep_fraction(RULES["random"][1], key, pool["random"], f),
        )
        yield teacher(own), pruned
        for alpha in config.alphas:
            yield Arm(f"alpha {alpha:g}", program(own, alpha), student), pruned
    for f in config.rule_fractions:
        for rule, (_, select) in rules.items():
            kept = keep_fraction(select, key, pool[rule], f)
            missing = 1 - len(np.unique(pool[rule].labels[kept])) / images.classes
            for name, alpha in ((rule, 0.0), (f"{rule} + KD", config.rule_alpha)):
                arm = Arm(
                    name,
                    program(own, alpha),
                    student,
                    measure=lambda *_, missing=missing: {"classes_lost": missing},
                )
                yield arm, task(table(config, "rules", f), kept)
    for f in config.teacher_fractions if config.teachers else ():
        kept = keep_fraction(RULES["random"][1], key, pool["random"], f)
        for name in config.teachers:
            network = teacher(name).deployed
            own_accuracy = test(network)(network.init(key))["accuracy"]
            arm = Arm(
                name,
                program(name, config.rule_alpha),
                student,
                measure=lambda *_, a=own_accuracy: {"teacher_accuracy": a},
            )
            yield arm, task(table(config, "teachers", f), kept)


def ridge(config: Config, seed: int, folder: Path) -> list[Record]:
    """Return mean squared errors of a pruned student's weights, by teacher's part."""
    d, n, kept, rng = 40, 200, 40, np.random.default_rng(seed)
    errors: dict[tuple[float, str], list[float]] = {}
    for _ in range(config.ridge_repeats):
        x, truth = rng.normal(size=(n, d)), rng.normal(size=d)
        y = x @ truth + rng.normal(size=n)
        teachers: dict[str, Any] = {"no teacher": None}
        for part in TEACHER_PARTS:
            rows = round(part * n)
            fit = ridge_self_distill(x[:rows], y[:rows], None, 1.0, 0.0)
            teachers[f"f_t = {part:g}"] = fit
        for alpha in (0.5, 1.0):
            for name, teacher in teachers.items():
                student = ridge_self_distill(x[:kept], y[:kept], teacher, 1.0, alpha)
                error = float(np.square(student - truth).sum())
                errors.setdefault((alpha, name), []).append(error)
    return [
        record
        for (alpha, name), values in errors.items()
        for record in records(
            RIDGE.format(alpha),
            name,
            seed,
            {"weight_error": float(np.mean(values))},
            0.0,
        )
    ]


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Simulate the ridge regressions, and train all arms."""
    found = []
    if config.ridge_repeats:
        for seed in seeds:
            found += run.part(
                f"ridge/seed{seed}",
                lambda folder, seed=seed: ridge(config, seed, folder),
            )
    return found + run_arms(arms, config, seeds, run, anew=True)


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the student's training with a teacher, and the shapes of its batch."""
    network = NETWORKS[config.network].build(100)
    optimizer = config.optimizer.build(config.steps)
    program = jaxkd.distill(network, network, pruned_kd(0.75), optimizer)
    return {config.network: (program, image_batch(config.task.batch_size, 32))}


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=[claim for config in PRESETS.values() for claim in claims(config)],
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("split", "teacher", "student", "order"),
)
