"""Images to learn from, and a vision-language model's embeddings of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from experiments.pcoreset.config import Config
from jaxkd import data
from jaxkd.losses import cosine_logits
from jaxkd.selection import fit_clap

POOL, PROJECTION_SEED, PROJECTED, SHOTS = 1297, 1, 20, 10
"""Of digits: training images; seed and size of the projection that stands for a
vision-language model; and the images a class that its prototypes are means of."""


@dataclass(frozen=True, eq=False)
class EmbeddedImages:
    """A data set and what a vision-language model makes of it.

    Attributes:
        train: the pool, as `data.Examples`.
        test: to measure accuracy on, likewise.
        labels: of the pool; a label counts as asked for when it is read.
        features: of the pool's images, (examples, features).
        test_labels: of the test images.
        test_features: of the test images.
        prototypes: (features, classes), the classes' mean text embeddings.
        transform: of training batches.
        test_transform: of others.
    """

    train: Any
    test: Any
    labels: np.ndarray
    features: np.ndarray
    test_labels: np.ndarray
    test_features: np.ndarray
    prototypes: np.ndarray
    transform: data.Transform | None = None
    test_transform: data.Transform | None = None


def load_task(config: Config) -> EmbeddedImages:
    """Return a configuration's data.

    Raises:
        FileNotFoundError: the data set or the embeddings are not there. It says what to
            put where.
        ValueError: the embeddings are not of the data set.
    """
    return _digits() if config.dataset == "digits" else _tfds(config)


def _digits() -> EmbeddedImages:
    parts = data.digits()
    arrays = {
        name: np.concatenate([parts.train.arrays[name], parts.test.arrays[name]])
        for name in ("image", "label")
    }
    flat = arrays["image"].reshape(len(arrays["label"]), -1)
    projection = np.random.default_rng(PROJECTION_SEED).normal(
        size=(flat.shape[1], PROJECTED)
    )
    features = flat @ projection
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("f4")
    labels = arrays["label"]
    means = [features[:POOL][labels[:POOL] == c][:SHOTS].mean(0) for c in range(10)]
    train, test = (
        data.Source(name, {key: array[part] for key, array in arrays.items()}, 10)
        for name, part in (("pool", slice(POOL)), ("test", slice(POOL, None)))
    )
    return EmbeddedImages(
        train,
        test,
        labels[:POOL],
        features[:POOL],
        labels[POOL:],
        features[POOL:],
        np.stack(means, axis=1),
    )


def _cropped(record: Mapping[str, Any], rng: np.random.Generator | None):
    crop = data.CropResize(224, smallest=0.5)
    return {"image": crop(record["image"], rng), "label": np.int32(record["label"])}


def _tfds(config: Config) -> EmbeddedImages:
    name = config.dataset
    test = "validation" if name == "imagenet2012" else "test"
    found = data.tfds_dataset(name, test=test, decode=_cropped)
    arrays = read_embeddings(config.embeddings, len(found.train), len(found.test))
    scale = data.Normalize(found.mean, found.std)
    task = EmbeddedImages(found.train, found.test, **arrays)
    return replace(task, transform=scale, test_transform=scale)


def read_embeddings(relative: str, train: int, test: int) -> dict[str, Any]:
    """Return the arrays of a file of embeddings below ``$JAXKD_DATA``.

    Args:
        relative: its path; an ``.npz`` of ``features`` and ``test_features``, the
            model's embeddings of the images in the data set's order; ``labels`` and
            ``test_labels``; and ``prototypes`` (features, classes), the mean text
            embeddings, not normalised.
        train: images in the pool.
        test: images to test on.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: an array is missing, or has another number of rows.
    """
    rows = {
        "labels": train,
        "features": train,
        "test_labels": test,
        "test_features": test,
    }
    try:
        path = data.data_file(relative)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; it holds the vision-language model's embeddings: "
            f"{', '.join(rows)} in the data set's order, and prototypes (features, "
            "classes), the mean text embedding of each class"
        ) from None
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    for array, count in {**rows, "prototypes": None}.items():
        if array not in arrays or count not in (None, len(arrays[array])):
            had = f"has {len(arrays[array])}" if array in arrays else "lacks it"
            raise ValueError(
                f"{path} {had} but {array} needs {count or 'a'} rows: embed every "
                "image of the data set once, in its order"
            )
    return {array: arrays[array] for array in (*rows, "prototypes")}


def teacher_prototypes(
    config: Config,
    task: EmbeddedImages,
    teacher: str,
    labelled: np.ndarray,
    key: PRNGKeyArray,
) -> np.ndarray:
    """Return the prototypes of a teacher that knows these labels.

    Args:
        config: of the few-shot teacher's training.
        task: the embeddings.
        teacher: ``zero-shot``, which knows none, or ``few-shot``.
        labelled: positions in the pool.
        key: of the few-shot teacher's batches.
    """
    if teacher == "zero-shot":
        return task.prototypes
    return np.asarray(
        fit_clap(
            key,
            jnp.asarray(task.features[labelled]),
            jnp.asarray(task.labels[labelled]),
            jnp.asarray(task.prototypes),
            scale=config.scale,
            passes=config.clap_passes,
            batch_size=config.clap_batch_size,
        )
    )


def teacher_logits(
    config: Config, features: np.ndarray, prototypes: np.ndarray
) -> np.ndarray:
    """Return a teacher's logits for embedded images."""
    classify = jax.jit(cosine_logits, static_argnums=2)
    logits = classify(jnp.asarray(features), jnp.asarray(prototypes), config.scale)
    return np.asarray(logits)
