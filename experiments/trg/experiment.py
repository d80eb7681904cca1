"""TRG: token-level relationship graphs, for images with a long tail of rare classes.

Zhang, Liu, He 2023 (arXiv:2306.12442) make tokens of all images of a batch the nodes of
a graph of nearest neighbours. The student learns the graph's local structure, which
token belongs to which (InfoNCE), and how the tokens of an image relate. They report it
above other relational distillation, the more so on long-tailed data.

``small`` takes 324 digits, 25 times as many of the first class as of the last; the
teacher has learnt from all digits, or from those 324 too. ``paper`` is CIFAR-100, whole
and with tails of 10 to 100, ``gpu`` the part of it in ``JAXKD_DATA``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from experiments.common.classification import Classification, ImagesConfig, image_batch
from experiments.common.configs import CIFAR_SGD, NetworkConfig, OptimizerConfig, choose
from experiments.common.networks import PAIRS
from experiments.trg.measures import contextual_mismatch, probe_loss, tapped
from jaxkd import distill
from jaxkd.data import example_labels, long_tailed
from jaxkd.evaluation.classification import predictor
from jaxkd.evaluation.long_tail import class_groups, group_accuracies
from jaxkd.methods import combine, cross_entropy, kd, trg
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.paper import PaperValue
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Method, Program, deployed


@dataclass(frozen=True)
class Setting:
    """A data set with a tail, a teacher and a student.

    Attributes:
        teacher: the network to learn from.
        student: the network to train.
        taps: whose tokens are compared, the student's and the teacher's.
        task: the images, and how long students learn them.
        optimizer: of the students.
        teacher_epochs: of the teacher.
        teacher_optimizer: of the teacher.
        imbalance: the ratio of the most and the least frequent class; 1 keeps all.
        teacher_sees_all: whether the teacher learns from all images.
        samples: tokens of an image that are nodes.
        normalize: whether tokens are standardised where an image's are compared.
        rows: the methods that are run; empty for all.
    """

    teacher: NetworkConfig
    student: NetworkConfig
    taps: tuple[str, str]
    task: ImagesConfig
    optimizer: OptimizerConfig
    teacher_epochs: int
    teacher_optimizer: OptimizerConfig
    imbalance: float = 1.0
    teacher_sees_all: bool = False
    samples: int = 4
    normalize: bool = False
    rows: tuple[str, ...] = ()

    def load(self) -> tuple[Classification, Classification]:
        """Return all images, and those with the tail."""
        images = self.task.load(self.optimizer)
        if self.imbalance == 1:
            return images, images
        return images, replace(images, train=long_tailed(images.train, self.imbalance))

    def methods(self, steps: int) -> dict[str, Method]:
        """Return the rows' methods, for so many steps."""
        both = (1.0, cross_entropy()), (1.0, kd(4.0))

        def graph(contextual: float, local: float, alignment: float) -> Method:
            term = trg(
                *self.taps,
                steps=steps,
                contextual=contextual,
                local=local,
                alignment=alignment,
                samples=self.samples,
                normalize_context=self.normalize,
            )
            return combine(*both, (1.0, term))

        return {
            "cross_entropy": cross_entropy(),
            "kd": combine(*both),
            "contextual": graph(1.0, 0.0, 0.0),
            "local": graph(0.0, 1.0, 0.0),
            "global": graph(0.0, 0.0, 0.03),
            "trg": graph(1.0, 1.0, 0.03),
            "trg_strong": graph(10.0, 1.0, 0.2),
        }


ADAMW = OptimizerConfig("adamw", 6e-3, 1e-2)
DIGITS = Setting(
    NetworkConfig("cnn", {"channels": (24, 48), "depth": 2}),
    NetworkConfig("cnn", {"channels": (8, 24)}),
    ("stage1", "stage1"),
    ImagesConfig("digits", epochs=150, batch_size=32, evaluate_every=30),
    ADAMW,
    30,
    replace(ADAMW, learning_rate=3e-3),
    imbalance=25.0,
)
SMALL = {
    "balanced teacher": replace(DIGITS, teacher_sees_all=True),
    "long-tailed teacher": replace(
        DIGITS, teacher_epochs=100, rows=("cross_entropy", "kd", "trg")
    ),
}


def _cifar(pair: str, dataset: str, imbalance: float, epochs: int) -> Setting:
    spec, share = PAIRS[pair], epochs / 240
    optimizer = CIFAR_SGD.scaled(spec.learning_rate)
    milestones = tuple(round(share * m) for m in CIFAR_SGD.milestones)
    task = ImagesConfig(dataset, epochs=epochs, batch_size=128)
    return Setting(
        spec.teacher,
        spec.student,
        (spec.stages[-1], spec.stages[-1]),
        task,
        replace(optimizer, milestones=milestones),
        epochs,
        replace(CIFAR_SGD, milestones=milestones),
        imbalance,
        normalize=True,
    )


PAPER_PAIRS = ("resnet32x4-resnet8x4", "wrn40_2-wrn16_2", "vgg13-vgg8")
FULL = {pair: _cifar(pair, "tfds/cifar100", 1.0, 240) for pair in PAPER_PAIRS}
FULL |= {
    f"{PAPER_PAIRS[0]}, tail {tail}": _cifar(
        PAPER_PAIRS[0], "tfds/cifar100", float(tail), 240
    )
    for tail in (10, 20, 50, 100)
}
GPU = {
    f"{pair}, a part, tail {tail}": _cifar(pair, "cifar100", float(tail), 60)
    for pair in PAPER_PAIRS[:1]
    for tail in (1, 50)
}
SETTINGS = SMALL | FULL | GPU
"""Settings by name."""

METHODS = ("cross_entropy", "kd", "contextual", "local", "global", "trg", "trg_strong")


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        settings: names of `SETTINGS`.
        methods: the rows.
        probe_images: of the test, on whose tokens students are compared.
        probe_steps: in which the projections are trained that measure the global loss.
    """

    settings: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    probe_images: int = 768
    probe_steps: int = 300


MAIN = ("cross_entropy", "kd", "trg")
PRESETS = {
    "small": Config(tuple(SMALL)),
    "paper": Config(tuple(FULL), MAIN),
    "gpu": Config(tuple(GPU), MAIN),
}

declare(
    head_accuracy=Metric("head %", higher_is_better=True),
    middle_accuracy=Metric("middle %", higher_is_better=True),
    tail_accuracy=Metric("tail %", higher_is_better=True),
    contextual_mismatch=Metric("contextual MSE", higher_is_better=False),
    global_loss=Metric("global loss", higher_is_better=False),
)
CLAIMS = [
    contrast("trg", "kd", "contextual_mismatch", setting="balanced teacher"),
    contrast("kd", "cross_entropy", "contextual_mismatch", setting="balanced teacher"),
    contrast("trg", "kd", "global_loss", setting="balanced teacher"),
    *(
        claim
        for setting in ("balanced teacher", *FULL, *GPU)
        for claim in (
            contrast("trg", "cross_entropy", "last_accuracy", setting=setting),
            contrast(
                *("trg", "kd", "last_accuracy", 0.02, "non-inferiority"),
                setting=setting,
                because="two standard errors of an earlier trial",
            ),
        )
    ),
    # A teacher without the tail's classes takes from the student what it knows.
    contrast("cross_entropy", "kd", "last_accuracy", setting="long-tailed teacher"),
]

BENCHMARK = {"teacher": 0.7942, "cross_entropy": 0.7250, "kd": 0.7333}
PAPER = {
    f"{PAPER_PAIRS[0]}/{name}": {
        "last_accuracy": PaperValue(value, "the common benchmark", checked=False)
    }
    for name, value in BENCHMARK.items()
}


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield every setting's teacher and students."""
    for name, setting in choose("setting", config.settings, SETTINGS).items():
        everything, rare = setting.load()
        methods = choose("method", config.methods, setting.methods(rare.steps))
        student, network = (
            net.build(rare.classes) for net in (setting.student, setting.teacher)
        )
        learnt = replace(
            everything if setting.teacher_sees_all else rare,
            epochs=setting.teacher_epochs,
            optimizer=setting.teacher_optimizer,
        )
        teacher = learnt.teacher(run, network, name, seed)
        task = rare.task(name)
        yield replace(teacher, measure=by_frequency(rare, network)), task
        task = rare.task(name, rare.logits(teacher.deployed))
        measure = measured(config, setting, rare, student, teacher.deployed)
        for method in [name for name in methods if name in (setting.rows or methods)]:
            program = rare.distill(student, teacher.deployed, methods[method])
            yield Arm(method, program, student, measure=measure), task


Measure = Callable[[Any, History], Values]


def by_frequency(images: Classification, network: Network) -> Measure:
    """Return what measures the test accuracy of frequent, middling and rare classes."""
    counts = np.bincount(example_labels(images.train), minlength=images.classes)
    groups, labels = class_groups(counts), example_labels(images.test)
    predict = predictor(network, images.test, transform=images.test_transform)

    def measure(state: Any, history: History) -> Values:
        predictions = predict(deployed(state)).argmax(-1)
        found = group_accuracies(predictions, labels, groups)
        return {f"{name}_accuracy": found[name] for name in groups}

    return measure


def measured(
    config: Config,
    setting: Setting,
    images: Classification,
    student: Network,
    teacher: Network,
) -> Measure:
    """Return what measures a student by class, and its tokens against the teacher's."""
    accuracies = by_frequency(images, student)
    sources = [(source, config.probe_images) for source in (images.train, images.test)]
    of_student, of_teacher = (
        [tapped(net, tap, *source, images.test_transform) for source in sources]
        for net, tap in zip((student, teacher), setting.taps, strict=True)
    )
    taught: list[Any] = []

    def measure(state: Any, history: History) -> Values:
        if not taught:
            taught.extend(run(teacher.init(jax.random.key(0))) for run in of_teacher)
        train, test = (
            (run(deployed(state)), of_teacher)
            for run, of_teacher in zip(of_student, taught, strict=True)
        )
        return {
            **accuracies(state, history),
            "contextual_mismatch": contextual_mismatch(test, setting.normalize),
            "global_loss": probe_loss(train, test, config.probe_steps),
        }

    return measure


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return TRG's program of the first pair, with the shapes of its batch."""
    name = config.settings[0]
    setting = SETTINGS[name]
    student, teacher = (net.build(100) for net in (setting.student, setting.teacher))
    epochs = setting.task.epochs
    optimizer = setting.optimizer.build(epochs, epochs)
    program = distill(student, teacher, setting.methods(epochs)["trg"], optimizer)
    return {name: (program, image_batch(setting.task.batch_size, 32))}


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5},
)
