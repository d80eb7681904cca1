"""What experiments on classification share: data, a teacher on labels, the records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.common.configs import OptimizerConfig
from jaxkd import data
from jaxkd.evaluation.classification import evaluator, predictor
from jaxkd.methods import cross_entropy
from jaxkd.network import Network
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Method, Program

Programs = Callable[
    [Any, Network, Network, optax.GradientTransformation], Mapping[str, Program]
]
"""``(config, student, teacher, optimizer) ->`` programs by their rows' names."""


def distilled(methods: Mapping[str, Method]) -> Programs:
    """Return the programs that distil by each of some methods."""

    def programs(config, student, teacher, optimizer):
        return {
            name: jaxkd.distill(student, teacher, method, optimizer)
            for name, method in methods.items()
        }

    return programs


@dataclass(frozen=True)
class ImagesConfig:
    """Labelled images, and how long they are learnt.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``, or ``tfds/…``.
        test_examples: that all are tested on; 0 for all.
        shrink: by which images are averaged down.
        augment: random shifts and mirroring; for data sets of uint8 images.
        shift: by up to how many pixels of a full image.
        epochs: of a student.
        batch_size: of students and teachers.
        evaluate_every: epochs between evaluations.
    """

    dataset: str = "digits"
    test_examples: int = 0
    shrink: int = 1
    augment: bool = True
    shift: int = 4
    epochs: int = 200
    batch_size: int = 50
    evaluate_every: int = 10

    def load(self, optimizer: OptimizerConfig) -> "Classification":
        """Return all training images to learn with an optimizer.

        Raises:
            FileNotFoundError: the data are not there; it says what to put where.
        """
        found = data.load(self.dataset)
        train: Any = found.train
        test: Any = found.test
        if self.test_examples:
            test = test.subset(self.test_examples)
        if self.shrink > 1:
            train, test = (shrunk(source, self.shrink) for source in (train, test))
        transform = test_transform = None
        if found.mean:  # The others are scaled already.
            transform = test_transform = data.Normalize(found.mean, found.std)
            if self.augment:
                moves = data.PadCrop(self.shift // self.shrink), data.Flip()
                transform = data.Compose((*moves, test_transform))
        return Classification(
            train,
            test,
            self.epochs,
            self.batch_size,
            optimizer,
            transform,
            test_transform,
            self.evaluate_every,
        )


@dataclass(frozen=True)
class Classification:
    """Labelled examples to train and to test on, and how they are learnt.

    Attributes:
        train: the examples to train on.
        test: the examples to test on.
        epochs: to train for.
        batch_size: of training.
        optimizer: of training.
        transform: of training batches.
        test_transform: of test batches.
        evaluate_every: epochs between evaluations.
    """

    train: data.Examples
    test: data.Examples
    epochs: int
    batch_size: int
    optimizer: OptimizerConfig
    transform: data.Transform | None = None
    test_transform: data.Transform | None = None
    evaluate_every: int = 1

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an image; () of data without images."""
        image = self.test.take(np.arange(1)).get("image")
        return () if image is None else image.shape[1:]

    @property
    def steps_per_epoch(self) -> int:
        """The steps of one epoch."""
        return data.steps_per_epoch(self.train, self.batch_size)

    @property
    def steps(self) -> int:
        """The steps of a whole run."""
        return self.epochs * self.steps_per_epoch

    def subset(self, examples: int) -> "Classification":
        """Return the same with a balanced part of the training examples; 0: all."""
        train: Any = self.train
        return replace(self, train=train.subset(examples)) if examples else self

    def divided(self, test_examples: int, seed: int) -> "Classification":
        """Return the same with all examples divided anew; 0 leaves them as they are."""
        if not test_examples:
            return self
        whole = pooled(self.train, self.test)
        train, test = data.split(whole, test_examples, seed=seed)
        return replace(self, train=train, test=test)

    def batches(self, seed: int, epochs: int | None = None):
        """Return training batches of a run, or of some epochs."""
        return data.batches(
            self.train,
            self.batch_size,
            epochs=self.epochs if epochs is None else epochs,
            seed=seed,
            transform=self.transform,
        )

    def distill(
        self, student: Network, teacher: Network | None, method: Method
    ) -> Program:
        """Return the program that trains a student with the optimizer."""
        optimizer = self.optimizer.build(self.steps, self.epochs)
        return jaxkd.distill(student, teacher, method, optimizer)

    def logits(self, network: Network) -> np.ndarray:
        """Return what a network with its variables says of the test examples."""
        predict = predictor(network, self.test, transform=self.test_transform)
        return predict(network.init(jax.random.key(0)))

    def task(self, setting: str = "", teacher: np.ndarray | None = None) -> Task:
        """Return the task: accuracy, calibration, and how a teacher is followed.

        Args:
            setting: the table's name.
            teacher: its logits on the test examples, for agreement and KL.
        """
        return Task(
            setting,
            self.batches,
            self.steps,
            lambda network: evaluator(
                network, self.test, teacher, transform=self.test_transform
            ),
            evaluate_every=self.evaluate_every * self.steps_per_epoch,
            checkpoint_every=max(self.epochs // 4, 1) * self.steps_per_epoch,
            summary=accuracies,
            input_shape=self.image_shape or None,
        )

    def teacher(self, run: Run, network: Network, setting: str, seed: int = 0) -> Arm:
        """Return a network trained on the labels: a row, and what students learn from.

        Args:
            run: keeps it.
            network: to train.
            setting: names its folder: settings of one teacher share it.
            seed: of its training.
        """
        program = self.distill(network, None, cross_entropy())
        return run.teacher(Arm("teacher", program, network), self.task(setting), seed)


def accuracies(history: History) -> Values:
    """Return one network's numbers: last and best epoch, calibration, fidelity."""
    curve, last = [entry["accuracy"] for entry in history], history[-1]
    measured = ("nll", "ece", "agreement", "teacher_kl")
    return {
        "last_accuracy": curve,
        "best_accuracy": max(curve),
        **{metric: last[metric] for metric in measured if metric in last},
    }


def image_batch(size: int, side: int, channels: int = 3) -> dict[str, Any]:
    """Return the shapes of a batch of labelled images, for compiling ahead of time."""
    return {
        "image": jax.ShapeDtypeStruct((size, side, side, channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


def corrupted(source: data.Source, share: float, seed: int = 0) -> data.Source:
    """Return a source with a share of its labels drawn anew, any class alike.

    The old ones are ``true_label``.
    """
    rng = np.random.default_rng(seed)
    label = source.arrays["label"].copy()
    bad = rng.permutation(len(label))[: round(share * len(label))]
    label[bad] = rng.integers(source.classes, size=len(bad))
    arrays = {**source.arrays, "label": label, "true_label": source.arrays["label"]}
    return data.Source(f"{source.name} corrupted", arrays, source.classes)


def pooled(train: Any, test: Any) -> data.Source:
    """Return the examples of two sources in memory as one."""
    both = {
        name: np.concatenate([array, test.arrays[name]])
        for name, array in train.arrays.items()
    }
    return data.Source(train.name, both, train.classes)


def shrunk(source: data.Source, by: int) -> data.Source:
    """Return a source with every image averaged down."""
    image = source.arrays["image"]
    n, height, width, channels = image.shape
    blocks = image.reshape(n, height // by, by, width // by, by, channels)
    small = blocks.mean((2, 4))
    if np.issubdtype(image.dtype, np.integer):
        small = small.round()
    small = small.astype(image.dtype)
    name = f"{source.name}/{height // by}x{width // by}"
    return data.Source(name, {**source.arrays, "image": small}, source.classes)
