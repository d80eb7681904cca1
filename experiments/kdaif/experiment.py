"""KD-AIF: every example's weight follows from its influence on validation examples.

Wu et al. 2025 (arXiv:2501.02705) compute how much each training example helps or harms
a student on clean validation examples, and distil with weights that follow from it.
They report gains on clean data, larger ones where labels are noisy or scarce.

``small`` takes 400 digits: in one table 30 % of their labels are drawn at random, in
the other the teacher has labelled all but 60. ``paper`` is the authors' example,
ResNet-50 to MobileNetV2 on CIFAR-100.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import (
    Classification,
    corrupted,
    image_batch,
)
from experiments.common.configs import choose
from experiments.kdaif.leave_one_out import left_out
from experiments.kdaif.settings import (
    LEAVE_ONE_OUT,
    NOISY,
    PRESETS,
    PSEUDO,
    ROUNDS,
    SETTINGS,
    WEIGHTS,
    Config,
)
from experiments.kdaif.weights import influence, measured, objective, weights_of
from jaxkd import data, distill
from jaxkd.evaluation.classification import example_labels, predictor
from jaxkd.methods import cross_entropy
from jaxkd.network import Network
from jaxkd.papers.kdaif import Models, kd_aif_round
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, Run, Task, run_arms
from jaxkd.types import Batch, Program

declare(
    detection_auc=Metric("AUC", higher_is_better=True),
    right_weight=Metric("weight, label right"),
    wrong_weight=Metric("weight, label wrong"),
    class_weight_gap=Metric("gap of classes"),
    loo_correlation=Metric("correlation", higher_is_better=True),
    loo_slope=Metric("slope"),
)

CLAIMS = [
    contrast("sigmoid", "uniform", "last_accuracy", setting=NOISY),
    contrast("exp", "uniform", "last_accuracy", setting=NOISY),
    contrast("released", "uniform", "last_accuracy", setting=NOISY, lower=True),
    contrast("uniform", 0.85, "detection_auc", setting=NOISY),
    contrast(
        cell("sigmoid", "right_weight"),
        cell("sigmoid", "wrong_weight"),
        "right_weight",
        setting=NOISY,
        lower=False,
    ),
    contrast("sigmoid", "gradients", "last_accuracy", setting=NOISY),
    contrast("rounds_ts", "rounds_s", "last_accuracy", setting=NOISY),
    contrast("rounds_s", "uniform", "last_accuracy", setting=NOISY),
    contrast("sigmoid", "uniform", "last_accuracy", setting=PSEUDO),
    contrast("rounds_ts", "uniform", "last_accuracy", setting=PSEUDO),
    contrast("influence", 0.9, "loo_correlation", setting=LEAVE_ONE_OUT),
]


def own_seed(seed: int) -> int:
    """Return a seed of the labels, by which no epoch is shuffled.

    An epoch's order is drawn by the run's own seed: it would begin with wrong labels.
    """
    return 1000 + seed


def divided(config: Config, seed: int) -> tuple[Classification, data.Source]:
    """Return the data with true labels, and the validation examples."""
    images = config.task.load(config.optimizer)
    whole: Any = images.train
    train, validation = data.split(whole, config.validation_examples, seed=seed)
    if config.train_examples:
        train = train.subset(config.train_examples, seed)
    return replace(images, train=train), validation


def pseudo_labelled(
    config: Config, images: Classification, network: Network, run: Run, seed: int
) -> tuple[Classification, Arm]:
    """Return the data with a teacher's labels for all but a few, and that teacher."""
    train: Any = images.train
    rng = np.random.default_rng(own_seed(seed))
    few = rng.permutation(len(train))[: config.labelled]
    learnt = replace(
        images,
        train=data.Source("labelled", {k: x[few] for k, x in train.arrays.items()}, 10),
        epochs=config.teacher_epochs * len(train) // config.labelled // 2,
        optimizer=config.teacher_optimizer,
    )
    teacher = learnt.teacher(run, network, PSEUDO, seed)
    given = predictor(teacher.deployed, train, transform=images.test_transform)
    label = given(teacher.deployed.init(jax.random.key(0))).argmax(-1)
    label = label.astype(train.arrays["label"].dtype)
    label[few] = train.arrays["label"][few]
    arrays = {**train.arrays, "label": label, "true_label": train.arrays["label"]}
    labelled = data.Source("pseudo-labelled", arrays, train.classes)
    return replace(images, train=labelled), teacher


def weighted(images: Classification, weights: np.ndarray) -> Classification:
    """Return the data with the examples' weights beside them."""
    kept = {"weight": weights.astype(np.float32)}
    return replace(images, train=data.Joined(images.train, kept))


def in_rounds(
    config: Config,
    name: str,
    images: Classification,
    score: Callable[[Models], jax.Array],
    student: Network,
    teacher: Network,
    train: Callable[..., Arm],
) -> tuple[Arm, np.ndarray, Any]:
    """Return a student whose weights are found anew between its epochs, and those."""
    done: list[Arm] = []
    epochs = config.task.epochs // config.rounds
    method = objective(config)

    def distil(models: Models, weights: np.ndarray) -> Network:
        mine = replace(weighted(images, weights), epochs=epochs)
        program = mine.distill(models.student, models.teacher, method)
        done.append(train(f"{name} student {len(done)}", program, student, mine))
        return done[-1].deployed

    def retrain(models: Models, weights: np.ndarray) -> Network:
        mine = replace(
            weighted(images, weights),
            epochs=config.retrain_epochs,
            optimizer=config.teacher_optimizer,
        )
        program = mine.distill(models.teacher, None, cross_entropy())
        return train(f"{name} teacher {len(done)}", program, teacher, mine).deployed

    models, weights = Models(student, teacher), np.ones(len(images.train))
    scores: Any = weights
    for _ in range(config.rounds):
        models, weights, scores = kd_aif_round(
            models,
            weights,
            distil=distil,
            score=score,
            retrain=retrain,
            mode=ROUNDS[name],
        )
    seconds = sum(arm.seconds for arm in done)
    return replace(done[-1], name=name, seconds=seconds), weights, scores


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield the teacher and the rows' students, in every setting."""
    names = choose("row", config.rows, dict.fromkeys(("uniform", *WEIGHTS, *ROUNDS)))
    for setting in choose("setting", config.settings, dict.fromkeys(SETTINGS)):
        images, validation = divided(config, seed)
        student, network = (
            net.build(images.classes) for net in (config.student, config.teacher)
        )
        if setting == PSEUDO:
            images, teacher = pseudo_labelled(config, images, network, run, seed)
        else:
            if setting == NOISY:
                train: Any = images.train
                noisy = corrupted(train, config.corrupted, own_seed(seed))
                images = replace(images, train=noisy)
            learnt = replace(
                images,
                epochs=config.teacher_epochs,
                optimizer=config.teacher_optimizer,
            )
            teacher = learnt.teacher(run, network, setting, seed)
        task = images.task(setting, images.logits(teacher.deployed))
        yield teacher, images.task(setting)

        def train_part(name, program, network, mine, setting=setting) -> Arm:
            return run.teacher(Arm(name, program, network), mine.task(setting), seed)

        program = images.distill(student, teacher.deployed, objective(config))
        first = train_part("uniform", program, student, images)
        models = Models(first.deployed, teacher.deployed)
        score = partial(influence, config, images, validation)
        scores = score(models)
        label = example_labels(images.train)
        truth = getattr(images.train, "arrays", {}).get("true_label", label)
        wrong = label != truth
        mine = config.pseudo_rows if setting == PSEUDO else names
        for name in (row for row in names if row in mine):
            arm, own, found, weights = first, task, scores, np.ones(len(label))
            if name in ROUNDS:
                arm, weights, found = in_rounds(
                    config, name, images, score, student, teacher.deployed, train_part
                )
            elif name != "uniform":
                if name == "gradients":
                    found = score(models, plain=True)
                weights = weights_of(name, found, wrong)
                some = weighted(images, weights)
                program = some.distill(student, teacher.deployed, objective(config))
                arm, own = (
                    Arm(name, program, student),
                    replace(task, batches=some.batches),
                )
            yield replace(arm, measure=measured(found, weights, wrong, label)), own


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train all rows, and fit logistic regressions without some examples."""
    found = run_arms(arms, config, seeds, run, anew=True)
    if config.left_out:
        for seed in seeds:
            images, validation = divided(config, seed)
            part = partial(left_out, config, images.train, validation, seed)
            found += run.part(f"{LEAVE_ONE_OUT}/seed{seed}", lambda _, f=part: f())
    return found


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the weighted distillation's program, with the shapes of its batch."""
    student, teacher = (net.build(100) for net in (config.student, config.teacher))
    size = config.task.batch_size
    weight = jax.ShapeDtypeStruct((size,), jnp.float32)
    optimizer = config.optimizer.build(config.task.epochs, config.task.epochs)
    program = distill(student, teacher, objective(config), optimizer)
    return {"weighted": (program, {**image_batch(size, 224), "weight": weight})}


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("split", "teacher", "student", "order"),
)
