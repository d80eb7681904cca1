"""Experiments that compare methods on pairs of networks, from digits to CIFAR-100."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import optax

from experiments.baselines.networks import PAIRS
from experiments.common.training import (
    Measure,
    Optimizer,
    Task,
    adam_cosine,
    adamw_cosine,
    build,
    image_batch,
    sgd_milestones,
    teacher_records,
    train_on_labels,
    train_students,
    transforms,
)
from jaxkd import data
from jaxkd.checks import unknown_name
from jaxkd.evaluation.classification import predictor
from jaxkd.network import Network
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Program


@dataclass(frozen=True)
class PairsConfig:
    """What is trained.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``.
        pairs: names of networks in the baselines' ``PAIRS``.
        train_examples: that the students see, one table each; 0 for all.
        epochs: of a student.
        batch_size: of students and teachers.
        optimizer: ``adam`` or ``adamw`` with a cosine, or ``sgd``.
        learning_rate: of a student.
        weight_decay: of ``adamw`` and ``sgd``.
        milestones: epochs after which the rate of ``sgd`` is a tenth.
        teacher_epochs: of the teacher, which sees all examples.
        teacher_learning_rate: of the teacher.
        evaluate_every: epochs between evaluations.
    """

    dataset: str = "digits"
    pairs: tuple[str, ...] = ("mlp",)
    train_examples: tuple[int, ...] = (100, 200)
    epochs: int = 200
    batch_size: int = 50
    optimizer: str = "adam"
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    teacher_epochs: int = 60
    teacher_learning_rate: float = 3e-3
    evaluate_every: int = 10

    def make_optimizer(self, learning_rate: float, epochs: int) -> Optimizer:
        """Return ``steps ->`` the optimizer of that name.

        Raises:
            ValueError: an unknown name.
        """
        decay = self.weight_decay
        makers = {
            "adam": lambda: adam_cosine(learning_rate),
            "adamw": lambda: adamw_cosine(learning_rate, decay),
            "sgd": lambda: sgd_milestones(
                learning_rate, decay, self.milestones, epochs
            ),
        }
        if self.optimizer not in makers:
            raise ValueError(unknown_name("optimizer", self.optimizer, makers))
        return makers[self.optimizer]()

    def student_optimizer(self, pair: str) -> Optimizer:
        """Return the optimizer of a pair's student."""
        rate = PAIRS[pair].learning_rate * self.learning_rate
        return self.make_optimizer(rate, self.epochs)


Methods = Callable[
    [Network, Network, optax.GradientTransformation], Mapping[str, Program]
]
"""``(student, teacher, optimizer) ->`` programs by their method's name."""


def run_pairs(
    config: PairsConfig,
    methods: Methods,
    seeds: Sequence[int],
    run: Run,
    measure: Measure | None = None,
) -> list[Record]:
    """Train a teacher of each pair, then all methods' students of every seed.

    Each number of training examples has a table, or the pair where it takes all.

    Args:
        config: what is trained.
        methods: to compare.
        seeds: of the students.
        run: keeps checkpoints and records.
        measure: further metrics of each student.
    """
    dataset = data.load(config.dataset)
    return [
        record
        for pair in config.pairs
        for record in run_pair(config, methods, pair, dataset, seeds, run, measure)
    ]


def run_pair(
    config: PairsConfig,
    methods: Methods,
    pair: str,
    dataset: data.Dataset,
    seeds: Sequence[int],
    run: Run,
    measure: Measure | None,
) -> list[Record]:
    """Return one pair's records."""
    if pair not in PAIRS:
        raise ValueError(unknown_name("pair", pair, PAIRS))
    train, test = transforms(dataset, augment=True)
    task = Task(
        setting=pair,
        train=dataset.train,
        test=dataset.test,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=config.student_optimizer(pair),
        transform=train,
        test_transform=test,
        evaluate_every=config.evaluate_every,
    )
    spec, classes = PAIRS[pair], dataset.train.classes
    student, teacher = build(spec.student, classes), build(spec.teacher, classes)
    started = time.perf_counter()
    rate, epochs = config.teacher_learning_rate, config.teacher_epochs
    labelled = replace(
        task, epochs=epochs, optimizer=config.make_optimizer(rate, epochs)
    )
    variables = train_on_labels(run, labelled, teacher, f"teacher-{pair}")
    seconds = time.perf_counter() - started
    logits = predictor(teacher, task.test, transform=test)(variables)
    taught = teacher.with_variables(variables)
    records = []
    for examples in config.train_examples:
        mine = task
        if examples:
            source = dataset.train.subset(examples)
            mine = replace(task, setting=f"{examples} images", train=source)
        records += teacher_records(mine, logits, seconds)
        programs = methods(student, taught, mine.optimizer(mine.steps))
        for name, program in programs.items():
            records += train_students(
                run,
                mine,
                name,
                program,
                student,
                seeds,
                teacher_logits=logits,
                measure=measure,
            )
    return records


def pair_programs(
    config: PairsConfig, methods: Methods, method: str, classes: int = 100
) -> dict[str, tuple[Program, Batch]]:
    """Return one method's program of each pair, and the shapes of a CIFAR batch."""
    programs = {}
    for pair in config.pairs:
        spec = PAIRS[pair]
        student, teacher = build(spec.student, classes), build(spec.teacher, classes)
        optimizer = config.student_optimizer(pair)(config.epochs)
        program = methods(student, teacher, optimizer)[method]
        programs[pair] = program, image_batch(config.batch_size, 32)
    return programs
