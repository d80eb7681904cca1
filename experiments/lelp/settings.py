"""LELP's settings: few classes that hold finer ones, and the networks that learn them.

The finer label f of an example is known, and as many of them make each class: no
network sees f, but for the upper bound whose sub-classes they are.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.common.classification import Classification, ImagesConfig
from experiments.common.configs import CIFAR_SGD, NetworkConfig, OptimizerConfig
from jaxkd import data
from jaxkd.network import Network

CLUSTERED = ("kmeans", "agglomerative", "tsne_kmeans", "random")
"""Rows whose sub-classes are given, as clusters of the features or at random."""

ROWS = (
    *("cross_entropy", "kd", "kd_t1", "dkd", "fitnets", "crd"),
    *("subclass_distillation", *CLUSTERED, "random_directions"),
    *("lelp", "lelp_t4", "lelp_raw", "lelp_unrotated", "oracle"),
)

QUESTIONS = "trec"
"""In place of a data set's name: TREC's questions, as bags of words."""


@dataclass(frozen=True)
class Setting:
    """A task of few classes, and who learns it.

    Attributes:
        teacher: the network to learn from.
        student: the network to train.
        task: the examples, and how long students learn them.
        optimizer: of the students.
        teacher_epochs: of the teacher, which sees all examples.
        teacher_optimizer: of the teacher.
        classes: that the finer labels make.
        subclasses: S, that a class is divided into.
        beta: β, the sub-classes' temperature.
        train_examples: that students see; 0 for all.
        methods: the rows; empty for all.
    """

    teacher: NetworkConfig
    student: NetworkConfig
    task: ImagesConfig
    optimizer: OptimizerConfig
    teacher_epochs: int
    teacher_optimizer: OptimizerConfig
    classes: int = 2
    subclasses: int = 5
    beta: float = 0.5
    train_examples: int = 0
    methods: tuple[str, ...] = ()

    def load(self) -> Classification:
        """Return the examples with their finer labels."""
        if self.task.dataset != QUESTIONS:
            return self.task.load(self.optimizer)
        found, task = questions(self.subclasses), self.task
        return Classification(
            found.train,
            found.test,
            task.epochs,
            task.batch_size,
            self.optimizer,
            evaluate_every=task.evaluate_every,
        )

    def build(self, network: NetworkConfig, outputs: int) -> Network:
        """Return a network that reads what the examples hold."""
        built = network.build(outputs)
        words = self.task.dataset == QUESTIONS
        return replace(built, reads=("words",), spec=None) if words else built


def coarse(source: Any, classes: int) -> Any:
    """Return a source whose finer labels make so many classes, in their order."""
    kinds = source.classes // classes
    changed = {"name": f"{source.name}, {classes} classes", "classes": classes}
    if isinstance(source, data.Source):
        label = source.arrays["label"] // kinds
        return replace(source, arrays={**source.arrays, "label": label}, **changed)

    def decode(record: Any, rng: np.random.Generator | None) -> dict[str, Any]:
        example = source.decode(record, rng)
        return {**example, "label": example["label"] // kinds}

    return replace(source, decode=decode, **changed)


def questions(kinds: int, words: int = 2000) -> data.Dataset:
    """Return TREC's questions (Li and Roth 2002) as bags of words, 5,452 and 500.

    Of each of the six classes the most frequent finer labels are kept, the others are
    one.

    Args:
        kinds: finer labels in a class.
        words: the most frequent of the training questions; a question's vector has
            length 1.
    """
    train, test = (
        list(data.open_records(data.data_file(f"text/trec_{part}.tsv.xz")))
        for part in ("train", "test")
    )
    pairs = Counter((row["coarse"], row["fine"]) for row in train)
    classes = sorted({of for of, _ in pairs})
    number = {}
    for c, of in enumerate(classes):
        fine = [pair for pair, _ in pairs.most_common() if pair[0] == of]
        number |= {
            pair: c * kinds + min(rank, kinds - 1) for rank, pair in enumerate(fine)
        }
    split = [
        [row["question"].lower().split() for row in rows] for rows in (train, test)
    ]
    known = Counter(word for text in split[0] for word in text).most_common(words)
    column = {word: i for i, (word, _) in enumerate(known)}

    def source(name: str, rows: list[Any], texts: list[list[str]]) -> data.Source:
        bags = np.zeros((len(rows), len(column)), np.float32)
        for bag, text in zip(bags, texts, strict=True):
            bag[[column[word] for word in text if word in column]] = 1
        bags /= np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1)
        other = [c * kinds + kinds - 1 for c in range(len(classes))]
        label = [
            number.get(
                (row["coarse"], row["fine"]), other[classes.index(row["coarse"])]
            )
            for row in rows
        ]
        arrays = {"words": bags, "label": np.asarray(label, np.int32)}
        return data.Source(name, arrays, len(classes) * kinds)

    return data.Dataset(
        source("trec/train", train, split[0]), source("trec/test", test, split[1])
    )


MLP_ADAM = OptimizerConfig("adamw", 3e-3)
DIGITS = Setting(
    NetworkConfig("mlp", {"features": 64, "widths": (256, 64)}),
    NetworkConfig("mlp", {"features": 64, "widths": (16,)}),
    ImagesConfig("digits", epochs=400, evaluate_every=100),
    OptimizerConfig("adam", 1e-2),
    teacher_epochs=50,
    teacher_optimizer=MLP_ADAM,
    train_examples=100,
    # With two classes DKD is KD: there is one other class.
    methods=tuple(row for row in ROWS if row != "dkd"),
)
CORE = (
    *("cross_entropy", "kd", "kd_t1", "fitnets", "kmeans", "random"),
    *("random_directions", "lelp", "lelp_t4", "lelp_unrotated", "oracle"),
)
CIFAR10 = Setting(
    NetworkConfig("cifar_resnet", {"depth": 92}),
    NetworkConfig("cifar_resnet", {"depth": 56}),
    ImagesConfig("tfds/cifar10", epochs=240, batch_size=64),
    CIFAR_SGD,
    teacher_epochs=240,
    teacher_optimizer=CIFAR_SGD,
    beta=1.0,
)
CIFAR100 = replace(CIFAR10, task=replace(CIFAR10.task, dataset="tfds/cifar100"))
MOBILE = {
    "student": NetworkConfig("mobilenet_v2"),
    "optimizer": CIFAR_SGD.scaled(0.2),
}

SETTINGS = {
    "digits, 100 images": DIGITS,
    "digits, 300 images": replace(
        DIGITS,
        task=replace(DIGITS.task, epochs=133, evaluate_every=33),
        train_examples=300,
        methods=CORE,
    ),
    "questions": Setting(
        NetworkConfig("mlp", {"features": 2000, "widths": (256, 64)}),
        NetworkConfig("mlp", {"features": 2000, "widths": (16,)}),
        ImagesConfig(QUESTIONS, epochs=60, evaluate_every=20),
        OptimizerConfig("adam", 1e-2),
        teacher_epochs=5,
        teacher_optimizer=MLP_ADAM,
        classes=6,
        train_examples=500,
        methods=(*CORE, "dkd", "subclass_distillation", "lelp_raw"),
    ),
    "cifar10-bin, 20,000 images": Setting(
        NetworkConfig("cifar_resnet", {"depth": 56}),
        NetworkConfig("cifar_resnet", {"depth": 8}),
        ImagesConfig("cifar10", epochs=30, batch_size=128, evaluate_every=10),
        OptimizerConfig("sgd", 0.1, 5e-4),
        teacher_epochs=40,
        teacher_optimizer=OptimizerConfig("sgd", 0.1, 5e-4),
        methods=("cross_entropy", "kd", "kmeans", "random", "lelp", "oracle"),
    ),
    "cifar10-bin, resnet92-resnet56": CIFAR10,
    "cifar10-bin, resnet92-mobilenet_v2": replace(CIFAR10, **MOBILE),
    "cifar100-bin, resnet92-resnet56": CIFAR100,
    "cifar100-bin, resnet92-mobilenet_v2": replace(CIFAR100, **MOBILE),
}
"""Tables by name."""

SMALL = ("digits, 100 images", "digits, 300 images", "questions")
GPU = ("cifar10-bin, 20,000 images",)
PAPER_PAIRS = tuple(list(SETTINGS)[4:])
