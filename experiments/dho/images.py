"""Few labels, and teachers like vision-language models that answer for all images."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification, shrunk
from experiments.common.configs import OptimizerConfig
from experiments.dho.config import Table
from jaxkd import data, models, networks, selection
from jaxkd.data.datasets import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from jaxkd.evaluation.classification import example_labels, predictor
from jaxkd.interop import load_pretrained, load_torch_resnet
from jaxkd.losses import cosine_logits, tip_adapter_logits
from jaxkd.network import Network
from jaxkd.reporting.run import Run
from jaxkd.teachers import class_prototypes

CONFUSED = {8: 3, 9: 5}
"""What the digits' teacher was told of four in five images of these."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""By which OpenAI's models have their images normalised."""

Classify = Callable[[jax.Array], jax.Array]
"""What a teacher sees, images or their embeddings, to logits."""


@dataclass(frozen=True, eq=False)
class FewLabels:
    """Images, some labels, and teachers.

    Attributes:
        pool: the images to learn from, as `data.Examples`.
        labelled: positions in the pool whose labels are known.
        validation: images to choose the mixture on; None without.
        test: images to test on.
        answers: each teacher's logits for the pool; empty where teachers are live.
        accuracy: of each teacher on the test images.
        teachers: networks that answer live.
        transform: of the pool's batches.
        test_transform: of the others'.
        prototypes: (features, classes), the zero-shot classifier; None without.
    """

    pool: Any
    labelled: np.ndarray
    validation: Any
    test: Any
    answers: Mapping[str, np.ndarray]
    accuracy: Mapping[str, float]
    teachers: Mapping[str, Network]
    transform: data.Transform | None = None
    test_transform: data.Transform | None = None
    prototypes: np.ndarray | None = None


def few_labels(table: Table, run: Run, setting: str, seed: int) -> FewLabels:
    """Return a table's images with the labels and teachers of a seed.

    Args:
        table: says what to load.
        run: keeps a teacher that is trained.
        setting: the table's name.
        seed: of which labels are known, and of the teacher.
    """
    if table.teacher == "confused":
        return _confused(table, run, setting, seed)
    return (_embedded if table.teacher == "embedded" else _clip)(table, seed)


def _parts(train: data.Source, sizes: tuple[int, int, int]) -> list[data.Source]:
    """Return the images to learn from and to choose on, the same for all seeds."""
    order = np.random.default_rng(0).permutation(len(train))
    pool, validation, _ = sizes
    pool = pool or len(train) - validation
    return [
        data.Source(
            f"{train.name}[{len(rows)}]",
            {name: array[rows] for name, array in train.arrays.items()},
            train.classes,
        )
        for rows in (order[:pool], order[pool : pool + validation])
    ]


def _answers(
    classifiers: Mapping[str, Classify], pool: data.Source, test: data.Source
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return every teacher's logits for the pool, and its accuracy on the test."""
    answers, accuracy = {}, {}
    for name, classify in classifiers.items():
        run = jax.jit(classify)
        answers[name] = np.asarray(run(pool.arrays["image"]))
        said = np.asarray(run(test.arrays["image"])).argmax(-1)
        accuracy[name] = float(np.mean(said == test.arrays["label"]))
    return answers, accuracy


def _confused(table: Table, run: Run, setting: str, seed: int) -> FewLabels:
    """Digits; the teacher was shown the pool's images with noise and wrong labels."""
    found: Any = data.load(table.dataset)
    pool, validation = _parts(found.train, table.sizes)
    rng = np.random.default_rng([seed, 1])
    image, label = (pool.arrays[name].copy() for name in ("image", "label"))
    image += table.noise * rng.normal(size=image.shape).astype("f4")
    for truth, other in CONFUSED.items():
        label[(label == truth) & (rng.random(len(label)) < 0.8)] = other
    shown = data.Source("shown to the teacher", {"image": image, "label": label}, 10)
    optimizer = OptimizerConfig("adam", 3e-3, schedule="constant")
    learning = Classification(shown, found.test, 20, table.batch_size, optimizer)
    teacher = learning.teacher(run, models.mlp(64, (64, 64), 10), setting, seed)
    network = teacher.deployed
    variables = network.init(jax.random.key(0))
    classifiers = {"zero-shot": lambda x: network.apply(variables, x)[0].logits}
    labelled, _ = selection.initial_pool(pool.arrays["label"], table.shots, seed)
    answers, right = _answers(classifiers, pool, found.test)
    return FewLabels(pool, labelled, validation, found.test, answers, right, {})


def _classifiers(
    table: Table,
    features: np.ndarray,
    labels: np.ndarray,
    prototypes: np.ndarray,
    seed: int,
) -> dict[str, Classify]:
    """Return the zero-shot teacher, and the one that knows the labelled embeddings."""
    words = jnp.asarray(prototypes)
    keys, values = selection.fit_tip_adapter(
        jax.random.key(seed),
        jnp.asarray(features),
        jnp.asarray(labels),
        words,
        scale=table.scale,
    )
    return {
        "zero-shot": lambda x: cosine_logits(x, words, table.scale),
        "few-shot": lambda x: tip_adapter_logits(
            x, words, keys, values, scale=table.scale
        ),
    }


@functools.cache
def _features(
    weights: str, dataset: str, sizes: tuple[int, int, int]
) -> list[data.Source]:
    """Return pool, validation and test as a trained network's pooled features."""
    network, variables = load_torch_resnet(data.data_file(weights))
    network = networks.with_logits(network, "pooled")
    scale = data.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return [
        data.Source(
            f"features of {source.name}",
            {
                "image": predictor(network, source, transform=scale)(variables),
                "label": source.arrays["label"],
            },
            source.classes,
        )
        for source in _images(dataset, sizes)
    ]


def _images(dataset: str, sizes: tuple[int, int, int]) -> list[data.Source]:
    """Return pool, validation and test."""
    found: Any = data.load(dataset)
    test = found.test.subset(sizes[2]) if sizes[2] else found.test
    return [*_parts(found.train, sizes), test]


def _embedded(table: Table, seed: int) -> FewLabels:
    """CIFAR-10; a trained ResNet stands for the image tower of the teacher.

    The columns of its classifier, with noise, stand for text embeddings: the features
    tell the classes apart better than the words that name them.
    """
    network, variables = load_torch_resnet(data.data_file(table.weights))
    kernel = np.asarray(variables["params"]["fc"]["kernel"])
    rng = np.random.default_rng([seed, 2])
    noise = table.noise * rng.normal(size=kernel.shape) / np.sqrt(len(kernel))
    prototypes = kernel / np.linalg.norm(kernel, axis=0) + noise
    prototypes = (prototypes / np.linalg.norm(prototypes, axis=0)).astype("f4")

    pool, validation, test = _features(table.weights, table.dataset, table.sizes)
    labelled, _ = selection.initial_pool(pool.arrays["label"], table.shots, seed)
    known = pool.arrays["image"][labelled], pool.arrays["label"][labelled]
    classifiers = _classifiers(table, known[0], known[1], prototypes, seed)
    answers, right = _answers(classifiers, pool, test)
    found = FewLabels(
        pool, labelled, validation, test, answers, right, {}, prototypes=prototypes
    )
    if table.embedded:
        return found
    images = _images(table.dataset, table.sizes)
    if table.shrink > 1:
        images = [shrunk(source, table.shrink) for source in images]
    scale = data.Normalize(CIFAR10_MEAN, CIFAR10_STD)
    found = replace(
        found,
        pool=images[0],
        validation=images[1],
        test=images[2],
        transform=scale,
        test_transform=scale,
    )
    if not table.live:
        return found
    own = data.ForTeacher(data.Normalize(IMAGENET_MEAN, IMAGENET_STD))
    moves = data.Compose((data.PadCrop(4), data.Flip(), own, scale))
    frozen = network.with_variables(variables)
    live = {
        name: networks.with_logits(frozen, "pooled", classify)
        for name, classify in classifiers.items()
    }
    return replace(found, answers={}, teachers=live, transform=moves)


def _clip(table: Table, seed: int) -> FewLabels:
    """Return images of tensorflow-datasets, and a CLIP folder's teachers.

    The folder holds the model, its tokenizer, and ``names.txt`` with a class's name in
    each line.
    """
    folder = Path(data.data_file(f"{table.weights}/config.json")).parent
    names = (folder / "names.txt").read_text().splitlines()
    clip, variables = load_pretrained(folder)
    tokenizer = data.load_tokenizer(folder)
    prototypes = class_prototypes(clip, variables, tokenizer, names)
    found = data.tfds_dataset(
        table.dataset.removeprefix("tfds/"), test="validation", decode=_cropped
    )
    scale = data.Normalize(found.mean, found.std)
    own = data.Normalize(CLIP_MEAN, CLIP_STD)
    labels = example_labels(found.train)
    labelled, _ = selection.initial_pool(labels, table.shots, seed)
    frozen = clip.with_variables(variables)
    embed = predictor(
        networks.with_logits(frozen, "image_embeds"),
        data.Subset(found.train, labelled),
        batch_size=256,
        transform=data.ForTeacher(own, "pixel_values"),
    )
    classifiers = _classifiers(
        table, embed(variables), labels[labelled], prototypes, seed
    )
    live = {
        name: networks.with_logits(frozen, "image_embeds", classify)
        for name, classify in classifiers.items()
    }
    moves = data.Compose(
        (data.Flip(), data.ForTeacher(own, "teacher_pixel_values"), scale)
    )
    return FewLabels(
        found.train, labelled, None, found.test, {}, {}, live, moves, scale
    )


def _cropped(record: Mapping[str, Any], rng: np.random.Generator | None):
    crop = data.CropResize(224, smallest=0.5)
    return {"image": crop(record["image"], rng), "label": np.int32(record["label"])}
