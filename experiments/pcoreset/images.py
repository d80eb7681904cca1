"""Images to learn from, and teachers that see a vision-language model's embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from experiments.pcoreset.config import Config
from jaxkd import data
from jaxkd.data.datasets import read_arrays
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
        transform: of all batches.
    """

    train: Any
    test: Any
    labels: np.ndarray
    features: np.ndarray
    test_labels: np.ndarray
    test_features: np.ndarray
    prototypes: np.ndarray
    transform: data.Transform | None = None


def load_images(config: Config) -> EmbeddedImages:
    """Return a configuration's data.

    Raises:
        FileNotFoundError: the data set or the embeddings are not there. It says what to
            put where.
        ValueError: the embeddings are not of the data set.
    """
    if config.dataset == "digits":
        return _digits()
    test = "validation" if config.dataset == "imagenet2012" else "test"
    found = data.tfds_dataset(config.dataset, test=test, decode=_cropped)
    arrays = read_embeddings(config.embeddings, len(found.train), len(found.test))
    scale = data.Normalize(found.mean, found.std)
    return EmbeddedImages(found.train, found.test, **arrays, transform=scale)


def _digits() -> EmbeddedImages:
    parts: Any = data.digits()
    image, label = (
        np.concatenate([parts.train.arrays[name], parts.test.arrays[name]])
        for name in ("image", "label")
    )
    flat = image.reshape(len(image), -1)
    rng = np.random.default_rng(PROJECTION_SEED)
    features = flat @ rng.normal(size=(flat.shape[1], PROJECTED))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("f4")
    pool, test = slice(POOL), slice(POOL, None)
    means = [features[pool][label[pool] == c][:SHOTS].mean(0) for c in range(10)]
    return EmbeddedImages(
        data.Source("pool", {"image": image[pool], "label": label[pool]}, 10),
        data.Source("test", {"image": image[test], "label": label[test]}, 10),
        label[pool],
        features[pool],
        label[test],
        features[test],
        np.stack(means, axis=1),
    )


def _cropped(record: Mapping[str, Any], rng: np.random.Generator | None):
    crop = data.CropResize(224, smallest=0.5)
    return {"image": crop(record["image"], rng), "label": np.int32(record["label"])}


def read_embeddings(relative: str, train: int, test: int) -> dict[str, np.ndarray]:
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
    names = [*rows, "prototypes"]
    try:
        arrays = dict(zip(names, read_arrays(relative, names), strict=True))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; it holds the vision-language model's embeddings: "
            f"{', '.join(rows)} in the data set's order, and prototypes (features, "
            "classes), the mean text embedding of each class"
        ) from None
    for name, count in rows.items():
        if len(arrays[name]) != count:
            raise ValueError(
                f"{relative} has {len(arrays[name])} rows of {name} but needs {count}: "
                "embed every image of the data set once, in its order"
            )
    return arrays


def teacher_prototypes(
    config: Config,
    images: EmbeddedImages,
    teacher: str,
    labelled: np.ndarray,
    key: PRNGKeyArray,
) -> np.ndarray:
    """Return the prototypes of a teacher that knows these labels.

    Args:
        config: of the few-shot teacher's training.
        images: with their embeddings.
        teacher: ``zero-shot``, which knows none, or ``few-shot``.
        labelled: positions in the pool.
        key: of the few-shot teacher's batches.
    """
    if teacher == "zero-shot":
        return images.prototypes
    found = fit_clap(
        key,
        jnp.asarray(images.features[labelled]),
        jnp.asarray(images.labels[labelled]),
        jnp.asarray(images.prototypes),
        scale=config.scale,
        passes=config.clap_passes,
        batch_size=config.clap_batch_size,
    )
    return np.asarray(found)


def teacher_logits(
    config: Config, features: np.ndarray, prototypes: np.ndarray
) -> np.ndarray:
    """Return a teacher's logits for embedded images."""
    classify = jax.jit(cosine_logits, static_argnums=2)
    return np.asarray(classify(features, prototypes, config.scale))


def teacher_accuracy(
    config: Config, images: EmbeddedImages, prototypes: np.ndarray
) -> float:
    """Return the share of the test images that a teacher is right on."""
    answers = teacher_logits(config, images.test_features, prototypes).argmax(-1)
    return float(np.mean(answers == images.test_labels))
