"""RAD: which soft labels to ask of a teacher that may be wrong.

Baykal et al. 2023 (arXiv:2210.01213) distil by few questions: a student asks a teacher
for the labels of some examples in every round. What the student doubts most the teacher
often has wrong, so RAD plays a game against an adversary that makes any m of its labels
wrong; the optimum is a closed form.

``small`` asks about digits, of a teacher that learnt from 40 labels and of one that
learnt from 150; ``paper`` asks a ResNet-50 about half of CIFAR-10.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.common.classification import Classification, image_batch
from experiments.common.configs import choose
from experiments.rad.config import NETWORKS, PRESETS, SETTINGS, Config
from experiments.rad.game import largest_gap
from jaxkd import data, selection
from jaxkd.evaluation.classification import evaluator, example_labels
from jaxkd.methods import cross_entropy
from jaxkd.network import Network
from jaxkd.reporting.claims import Claim, contrast, observed
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, Clock, Run, Task, records
from jaxkd.selection import Asked, Pool, Select
from jaxkd.types import Batch, Program

declare(
    mean_accuracy=Metric("mean of rounds %", higher_is_better=True),
    query_accuracy=Metric("queries right %", higher_is_better=True),
    support=Metric("k*/n %"),
)

RULES: dict[str, Select] = {
    "uniform": selection.random_select,
    "margin": selection.margin_select,
    "entropy": selection.entropy_select,
    "coreset": selection.coreset_select,
    "cluster-margin": selection.cluster_margin_select,
    "badge": selection.badge_select,
    "rad": selection.rad_select,
}
"""The rows; RAD is told how many labels may be wrong, round by round."""

GAME = "linear program"


def claims(setting: str) -> list[Claim]:
    """Return what one table is to show; margins were set before any run."""
    return [
        contrast("rad", "margin", "query_accuracy", 0.08, setting=setting),
        *(
            contrast(
                *("rad", other, "last_accuracy", 0.02, "non-inferiority"),
                setting=setting,
                because="a standard error of an earlier trial with ten seeds",
            )
            for other in ("uniform", "margin")
        ),
    ]


@dataclass(frozen=True, eq=False)
class Given:
    """What one seed of a table starts with; the same for all rules.

    Attributes:
        images: ``train`` is what may be asked for, and the labelled examples.
        labels: of ``train``; one is read where it is labelled, and to judge answers.
        labelled: positions of the student's labels.
        unlabelled: positions that the teacher can be asked for.
        answers: (examples, classes), the teacher's probabilities.
        right: whether the teacher is right on validation examples.
        teacher: with its variables.
    """

    images: Classification
    labels: np.ndarray
    labelled: np.ndarray
    unlabelled: np.ndarray
    answers: np.ndarray
    right: np.ndarray
    teacher: Arm


def learning(
    config: Config, images: Classification, positions: np.ndarray, labels: np.ndarray
) -> Task:
    """Return the training on some examples, with their labels or probabilities."""
    rows = images.train.take(positions)
    del rows["index"]
    source = data.Source("asked", {**rows, "label": labels}, images.classes)
    size = min(config.task.batch_size, len(source))
    epochs = -(-config.steps // (len(source) // size))
    return Task(
        "",
        lambda seed: data.batches(
            source, size, epochs=epochs, seed=seed, transform=images.transform
        ),
        config.steps,
    )


def supervised(config: Config, network: Network) -> Program:
    """Return the training of a network on labels, or on probabilities."""
    optimizer = config.optimizer.build(config.steps)
    return jaxkd.distill(network, None, cross_entropy(), optimizer)


def prepare(
    config: Config,
    run: Run,
    teacher: Program,
    network: Network,
    setting: str,
    seed: int,
) -> Given:
    """Return a seed's division of the images, and the teacher that learnt its part."""
    images = config.task.load(config.optimizer).divided(config.test_examples, seed)
    whole: Any = images.train
    train, validation = data.split(whole, config.validation, seed=seed)
    images = replace(images, train=train)
    labels = example_labels(train)
    of_teacher, of_student = SETTINGS[setting]
    known, unlabelled = selection.initial_pool(labels, of_teacher, seed)
    labelled, _ = selection.initial_pool(labels, of_student, seed)
    task = learning(config, images, known, labels[known])
    own_task = replace(task, setting=setting)
    arm = run.teacher(Arm("teacher", teacher, network), own_task, seed)
    variables = [arm.deployed.init(jax.random.key(0))]
    ask = partial(
        selection.observe, network, variables, transform=images.test_transform
    )
    answers, checked = (ask(x) for x in (train, validation))
    probs = np.asarray(jax.nn.softmax(answers.logits[0]))
    right = checked.logits[0].argmax(-1) == checked.labels
    return Given(images, labels, labelled, unlabelled, probs, right, arm)


def play(
    config: Config,
    run: Run,
    program: Program,
    network: Network,
    test: Callable[[Any], Any],
    given: Given,
    rule: str,
    seed: int,
    folder: Path,
) -> list[Record]:
    """Return one run's accuracy over the rounds, and how often answers are right."""
    images, classes = given.images, given.images.classes
    own = np.eye(classes, dtype=np.float32)[given.labels[given.labelled]]
    nothing = np.zeros(0, int), np.zeros((0, classes), np.float32)
    asked, curve, supports = Asked(*nothing, given.unlabelled), [], []
    with Clock(folder) as clock:
        for number in range(config.rounds + 1):
            task = learning(
                config,
                images,
                np.concatenate([given.labelled, asked.positions]),
                np.concatenate([own, asked.targets]),
            )
            # Round 0 is the same for all rules: it is trained once.
            shared = folder.parent.parent / "start" / folder.name
            place = folder / f"round{number}" if number else shared
            state, history = run.fit(program, task, seed, place, rule, test)
            curve.append(history[-1]["accuracy"])
            if number == config.rounds:
                break
            seen = selection.observe(
                *(network, [state.student], images.train),
                tap="pooled",
                transform=images.test_transform,
            )
            probs, features = jax.nn.softmax(seen.logits[0]), seen.features[0]
            left = asked.unlabelled
            taken = np.concatenate([given.labelled, asked.positions])
            pool = Pool(probs[left], features[left], chosen_features=features[taken])
            mistakes = selection.estimate_mistakes(given.right, len(left))
            select = RULES[rule]
            if rule == "rad":
                select = partial(selection.rad_select, mistakes=mistakes)
                found = selection.rad_distribution(
                    selection.margin_gain(jnp.asarray(pool.probs)),
                    mistakes,
                    min_support=config.queries,
                )
                supports.append(float(found.support) / len(left))
            key = jax.random.fold_in(jax.random.key(seed), number)
            asked = selection.ask_teacher(
                asked, select, key, pool, config.queries, given.answers.__getitem__
            )
    right = asked.targets.argmax(-1) == given.labels[asked.positions]
    values: dict[str, Any] = {
        "last_accuracy": curve,
        "mean_accuracy": float(np.mean(curve)),
        "query_accuracy": float(right.mean()),
    }
    if supports:
        values["support"] = float(np.mean(supports))
    return records("", rule, seed, values, clock.seconds)


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Compare the closed form with linear programs, and play all rules' rounds."""
    rules = choose("rule", config.rules, RULES)
    settings = choose("setting", config.settings, SETTINGS)
    images = config.task.load(config.optimizer)
    student, teacher = (
        NETWORKS[name].build(images.classes)
        for name in (config.student, config.teacher)
    )
    programs = [supervised(config, network) for network in (student, teacher)]
    found = []
    for seed in seeds if config.games else ():
        gap = {"lp_gap": largest_gap(seed, config.games)}
        found += records(GAME, "rad", seed, gap, 0.0)
    for setting in settings:
        for seed in seeds:
            given = prepare(config, run, programs[1], teacher, setting, seed)
            options: Any = {"transform": given.images.test_transform}
            test = evaluator(student, given.images.test, **options)
            values = {
                "last_accuracy": evaluator(teacher, given.images.test, **options)(
                    given.teacher.deployed.init(jax.random.key(0))
                )["accuracy"]
            }
            found += records(setting, "teacher", seed, values, given.teacher.seconds)
            for rule in rules:
                part = run.part(
                    f"{setting}/{rule}/seed{seed}",
                    lambda folder, rule=rule, seed=seed, given=given, test=test: play(
                        *(config, run, programs[0], student, test, given),
                        *(rule, seed, folder),
                    ),
                )
                found += [replace(record, setting=setting) for record in part]
    return found


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the student's training on soft labels, and the shapes of its batch."""
    size, network = config.task.batch_size, NETWORKS[config.student].build(10)
    batch = image_batch(size, 32)
    batch["label"] = jax.ShapeDtypeStruct((size, 10), jnp.float32)
    return {config.student: (supervised(config, network), batch)}


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=[
        observed("rad", "<", 1e-8, "lp_gap", setting=GAME),
        *(claim for setting in PRESETS["small"].settings for claim in claims(setting)),
    ],
    full_scale=full_scale,
    seeds={"small": 10},
    varies=("split", "teacher", "labels", "student", "order"),
)
