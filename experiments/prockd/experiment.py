"""ProC-KD: prototypes of a teacher's local features carry over to other classes.

Li et al. 2022 (arXiv:2212.13180): a teacher of another task cannot teach by its logits,
but the parts that it sees in images are parts of other objects too. Prototypes of its
features are learnt along with the student, whose features attend to them.

``small`` takes digits: a teacher of 0 to 4 and a student of 5 to 9, and a teacher of
CIFAR-10's ten classes with a student of all ten digits. ``paper`` is CIFAR-100 with a
DeiT of six blocks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.common.classification import (
    Classification,
    ImagesConfig,
    accuracies,
    image_batch,
)
from experiments.common.configs import NetworkConfig, OptimizerConfig, choose
from jaxkd import data, distill, methods, selection
from jaxkd.adapters import abstract_module, merge_module
from jaxkd.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from jaxkd.evaluation.classification import accuracy, evaluator, predictor
from jaxkd.interop import load_pretrained, load_torch_resnet
from jaxkd.losses import prediction_entropy
from jaxkd.network import Network
from jaxkd.papers.prockd import PrototypeModule, enhanced, enhanced_variables, prockd
from jaxkd.papers.prockd.program import feature_tokens
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Program


@dataclass(frozen=True)
class Table:
    """A student of some classes, and a teacher of others.

    Attributes:
        dataset: of the student; the teacher's too, if it has no weights.
        classes: the student's, a range of the data set's.
        shots: labelled images a class; 0 for all.
        teacher: the network, trained here on the other classes.
        weights: of a trained teacher below ``$JAXKD_DATA``, in place of that.
        teacher_taps: layers that are fused.
        student: the network.
        tap: its tokens or last map.
        width: of those.
        prototypes: K.
        task: how long the student learns.
        optimizer: of the student.
    """

    dataset: str
    classes: tuple[int, int]
    shots: int
    teacher: NetworkConfig
    weights: str
    teacher_taps: tuple[str, ...]
    student: NetworkConfig
    tap: str
    width: int
    prototypes: int = 24
    task: ImagesConfig = ImagesConfig(
        "digits", epochs=150, batch_size=40, evaluate_every=50
    )
    optimizer: OptimizerConfig = OptimizerConfig("adam", 3e-3)


def _cnn(*channels: int) -> NetworkConfig:
    return NetworkConfig("cnn", {"channels": channels, "depth": 2})


def _deit(blocks: int) -> NetworkConfig:
    return NetworkConfig("vit", {"size": (768, blocks, 12), "drop_path": 0.1})


TABLES = {
    "digits 5 to 9 from 0 to 4": Table(
        *("digits", (5, 10), 8, _cnn(16, 32), "", ("stage0", "stage1")),
        student=_cnn(8, 24),
        tap="stage1",
        width=24,
    ),
    "digits from CIFAR-10": Table(
        "digits",
        (0, 10),
        4,
        NetworkConfig("cifar_resnet", {"depth": 20}),
        "weights/cifar10_resnet20.npz",
        ("stage1", "stage2", "stage3"),
        student=_cnn(8, 24),
        tap="stage1",
        width=24,
    ),
    "CIFAR-100 from ImageNet": Table(
        "tfds/cifar100_224",
        (0, 100),
        0,
        _deit(12),
        "weights/deit-base-patch16-224",
        ("block3", "block7", "block11"),
        student=_deit(6),
        tap="block5",
        width=768,
        prototypes=72,
        task=ImagesConfig("tfds/cifar100_224", epochs=90, batch_size=64),
        optimizer=OptimizerConfig("adam", 5e-4, 0.05, warmup=0.055, final=0.02),
    ),
}
"""Tables by name; the last is the authors' code's setting."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        tables: names of `TABLES`.
        rows: of every table.
    """

    tables: tuple[str, ...]
    rows: tuple[str, ...] = (
        *("scratch", "hint", "prockd", "no_consistency", "features", "own_head"),
    )


NAMES = tuple(TABLES)
PRESETS = {"small": Config(NAMES[:2]), "paper": Config(NAMES[2:])}

declare(
    augmented_accuracy=Metric("enhanced head %", higher_is_better=True),
    prototype_entropy=Metric("entropy of use %"),
    head_kl=Metric("KL of the heads"),
)

CLAIMS = [
    claim
    for setting in NAMES[:2]
    for claim in (
        contrast(
            *("prockd", "scratch", "last_accuracy", 0.015, "non-inferiority"),
            setting=setting,
            because="one standard error of an earlier trial's students",
        ),
        contrast(
            cell("prockd", "augmented_accuracy"),
            cell("prockd", "last_accuracy"),
            *("last_accuracy", 0.02, "equivalence"),
            setting=setting,
            because="the heads may differ by two points",
        ),
    )
]


@dataclass(frozen=True, eq=False)
class Transfer:
    """A student's images, and the teacher that it learns from.

    Attributes:
        images: the student's.
        student: the network.
        teacher: with its weights.
    """

    images: Classification
    student: Network
    teacher: Network


def _range(source: data.Source, first: int, last: int) -> data.Source:
    """Return the examples of some classes, numbered from 0."""
    label = source.arrays["label"]
    chosen = (label >= first) & (label < last)
    arrays = {name: array[chosen] for name, array in source.arrays.items()}
    arrays["label"] = arrays["label"] - first
    return data.Source(f"{source.name}[{first}:{last}]", arrays, last - first)


def _enlarged(source: data.Source) -> data.Source:
    """Return digits with what a network for CIFAR-10 is shown of them."""
    image = source.arrays["image"].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    mean, std = (np.asarray(x, np.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    shown = (image - mean) / std
    return replace(source, arrays={**source.arrays, "teacher_image": shown})


def _pretrained(weights: str) -> Network:
    """Return the network of a file of a ResNet, or of a Hugging Face folder."""
    if weights.endswith(".npz"):
        network, variables = load_torch_resnet(data.data_file(weights))
    else:
        folder = Path(data.data_file(f"{weights}/config.json")).parent
        network, variables = load_pretrained(folder)
    return network.with_variables(variables)


def load(table: Table, run: Run, setting: str) -> Transfer:
    """Return a table's images and its teacher, trained where it has no weights."""
    images = table.task.load(table.optimizer)
    train: Any = images.train
    test: Any = images.test
    first, last = table.classes
    if not table.weights:
        others = [_range(source, 0, first) for source in (train, test)]
        learning = replace(
            images, train=others[0], test=others[1], epochs=30, batch_size=50
        )
        network = table.teacher.build(first)
        teacher = learning.teacher(run, network, setting).deployed
        train, test = (_range(source, first, last) for source in (train, test))
    else:
        teacher = _pretrained(table.weights)
        train = _enlarged(train) if table.dataset == "digits" else train
    student = table.student.build(last - first)
    return Transfer(replace(images, train=train, test=test), student, teacher)


def programs(
    table: Table,
    student: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
) -> dict[str, Program]:
    """Return the programs of the rows."""
    prototypes = partial(
        prockd,
        student,
        teacher,
        optimizer,
        tap=table.tap,
        teacher_taps=table.teacher_taps,
        prototypes=table.prototypes,
    )

    hint = methods.fitnets(table.tap, table.teacher_taps[-1])
    both = methods.combine((1.0, methods.cross_entropy()), (1.0, hint))
    return {
        "scratch": distill(student, None, methods.cross_entropy(), optimizer),
        "hint": distill(student, teacher, both, optimizer),
        "prockd": prototypes(),
        "no_consistency": prototypes(consistency=0.0),
        "features": prototypes(feature_weight=0.1),
        "own_head": prototypes(own_weight=1.0),
    }


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield the rows of all tables; every seed has labelled images of its own."""
    for setting, table in choose("table", config.tables, TABLES).items():
        found = load(table, run, setting)
        images, student = found.images, found.student

        def few(seed: int, images=images, table=table) -> Classification:
            if not table.shots:
                return images
            train: Any = images.train
            rows, _ = selection.initial_pool(train.arrays["label"], table.shots, seed)
            arrays = {name: array[rows] for name, array in train.arrays.items()}
            return replace(images, train=replace(train, arrays=arrays))

        some = few(seed)
        optimizer = some.optimizer.build(some.steps, some.epochs)
        task = Task(
            setting,
            lambda seed, few=few: few(seed).batches(seed),
            some.steps,
            lambda network, some=some: evaluator(
                network, some.test, transform=some.test_transform
            ),
            evaluate_every=table.task.evaluate_every * some.steps_per_epoch,
            summary=accuracies,
        )
        made = programs(table, student, found.teacher, optimizer)
        for name in choose("row", config.rows, made):
            measure = (
                measured(table, found) if name not in ("scratch", "hint") else None
            )
            arm = Arm(name, made[name], student)
            yield (replace(arm, measure=measure) if measure else arm), task


def measured(table: Table, found: Transfer):
    """Return what measures the enhanced head, and how prototypes are used."""
    images, teacher = found.images, found.teacher
    network = enhanced(found.student, table.tap, table.width, table.prototypes)
    predict = predictor(network, images.test, transform=images.test_transform)
    rows = np.arange(min(len(images.train), 200))
    some = jax.tree.map(jnp.asarray, images.train.take(rows))

    def measure(state: Any, history: History) -> Values:
        logits = jnp.asarray(predict(enhanced_variables(state)))
        labels = jnp.asarray(images.test.take(np.arange(len(images.test)))["label"])
        seen = teacher.apply(
            state.teacher, teacher.read(some, "teacher"), taps=table.teacher_taps
        )[0].features
        own = found.student.apply(state.student, some["image"], taps=(table.tap,))[
            0
        ].features[table.tap]
        layers = [feature_tokens(seen[tap], own) for tap in table.teacher_taps]
        widths = [x.shape[-1] for x in layers]
        module: Any = merge_module(
            abstract_module(
                lambda: PrototypeModule(
                    widths, table.width, table.prototypes, rngs=nnx.Rngs(0)
                )
            ),
            state.method["params"],
            state.method["state"],
        )
        shares = module.shares(module.fuse(layers)).mean((0, 1))
        entropy = prediction_entropy(jnp.log(shares)[None])[0]
        return {
            "augmented_accuracy": float(accuracy(logits, labels)),
            "prototype_entropy": float(entropy / np.log(table.prototypes)),
            "head_kl": [entry["train_consistency"] for entry in history],
        }

    return measure


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return ProC-KD's training of a DeiT with six blocks by one with twelve."""
    table = TABLES[config.tables[0]]
    epochs, size = table.task.epochs, table.task.batch_size
    optimizer = table.optimizer.build(epochs * (50_000 // size), epochs)
    made = programs(
        table, table.student.build(100), table.teacher.build(1000), optimizer
    )
    return {"deit": (made["prockd"], image_batch(size, 224))}


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("labels", "student", "order"),
)
