"""The data divided among clients, and what each client's filter lets it share."""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.edgefd.config import Config
from jaxkd import data
from jaxkd.evaluation.generation import feature_extractor
from jaxkd.federated import (
    centroid_filter,
    density_filter,
    edgefd_mask,
    id_threshold,
    kmeans_fit,
    kulsif_fit,
    kulsif_kernel,
    kulsif_ratio,
)
from jaxkd.interop import load_pretrained
from jaxkd.reporting.records import Record

GRAY = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}
"""Mean and deviation of the pixels of the training images, in [0, 1]."""


def load_dataset(config: Config, name: str) -> tuple[data.Dataset, Any]:
    """Return a data set, and the transform that scales its images."""
    kind = name.removeprefix("tfds/")
    if name.startswith("tfds/") and kind in GRAY:
        mean, std = GRAY[kind]
        dataset = data.tfds_dataset(kind, mean=(mean,), std=(std,))
    else:
        dataset = data.load(name)
    scale = data.Normalize(dataset.mean, dataset.std) if dataset.mean else None
    if not config.train_examples:
        return dataset, scale
    joined = {
        key: np.concatenate([dataset.train.arrays[key], dataset.test.arrays[key]])
        for key in ("image", "label")
    }

    def part(name: str, rows: slice) -> data.Source:
        arrays = {key: array[rows] for key, array in joined.items()}
        return data.Source(name, arrays, dataset.train.classes)

    border, name = config.train_examples, f"{name}[{config.train_examples}]"
    train = part(f"{name}/train", slice(border))
    test = part(f"{name}/test", slice(border, None))
    return data.Dataset(train, test, dataset.mean, dataset.std), scale


def features_of(
    config: Config, name: str, source: data.Examples, scale: Any
) -> np.ndarray:
    """Return all examples' features: scaled pixels, or a frozen network's.

    Raises:
        FileNotFoundError: the frozen network is not there; it says what to put where.
    """
    folder = dict(config.extractors).get(name)
    describe = np.asarray
    if folder is not None:
        where = data.data_file(f"{folder}/config.json").parent
        describe = feature_extractor(*load_pretrained(where))
    parts = np.array_split(np.arange(len(source)), -(-len(source) // 1000))
    batches = (source.take(rows) for rows in parts)
    images = ((b if scale is None else scale(b, None))["image"] for b in batches)
    return np.concatenate([describe(x).reshape(len(x), -1) for x in images])


@dataclass(frozen=True)
class Federation:
    """What every filter decides on.

    Attributes:
        features: (examples, features) of all examples, in one scale for all clients.
        labels: (examples,); filters do not see them, but for the oracle.
        parts: the positions each client holds.
        proxies: the proxies' positions.
        owner: the client that gave each proxy.
        seed: of what filters draw.
    """

    features: np.ndarray
    labels: np.ndarray
    parts: list[np.ndarray]
    proxies: np.ndarray
    owner: np.ndarray
    seed: int

    @property
    def held(self) -> np.ndarray:
        """Return whether each client holds each proxy's class (clients, proxies)."""
        classes = self.labels[self.proxies]
        return np.stack([np.isin(classes, self.labels[part]) for part in self.parts])


def divide(
    config: Config, labels: np.ndarray, features: np.ndarray, kind: data.Kind, seed: int
) -> Federation:
    """Return who holds what, and the proxies."""
    parts = data.partition(
        labels,
        config.clients,
        kind,
        seed=seed,
        classes_per_client=config.classes_per_client,
    )
    proxies, owner = data.build_proxy(parts, config.proxy_share, seed=seed)
    return Federation(features, labels, parts, proxies, owner, seed)


def shared(method: str, config: Config, federation: Federation) -> np.ndarray:
    """Return whether each client shares each proxy's prediction (clients, proxies)."""
    if method == "oracle":
        return federation.held
    if method not in ("edgefd", "selective_fd"):
        return np.ones_like(federation.held)
    features, key = federation.features, jax.random.key(federation.seed)
    masks = []
    for client, part in enumerate(federation.parts):
        if method == "edgefd":
            fit = jax.random.fold_in(key, client), config.centroids, config.percentile
            passes = centroid_filter(features[part], *fit)
        else:
            passes = density_filter(features[part], key, config.percentile)
        own = federation.owner == client
        masks.append(passes(features[federation.proxies], own))
    return np.stack(jax.device_get(masks))


def filter_quality(masks: np.ndarray, federation: Federation) -> dict[str, float]:
    """Return precision and recall of the (client, proxy) pairs that are shared.

    A pair is right if the client holds examples of the proxy's class.
    """
    right = (masks & federation.held).sum()
    return {
        "filter_precision": float(right / max(masks.sum(), 1)),
        "filter_recall": float(right / federation.held.sum()),
    }


def filter_costs(config: Config, name: str, seed: int) -> list[Record]:
    """Return milliseconds of one client's filters, measured in turns on one machine.

    ``kmeans`` is fit and test, ``kulsif_fit`` the kernel's fit alone, and ``kulsif``
    its fit and test. Each is the median of nine runs, after the compiler's.

    Args:
        config: says how many centroids there are, and how many clients share the data.
        name: of the data set, of which all pixels are taken.
        seed: of k-means and of the auxiliary samples.
    """
    images = data.load(name).train.arrays["image"]
    features, key = images.reshape(len(images), -1), jax.random.key(seed)
    known = jnp.asarray(features[: len(features) // config.clients])
    asked = jnp.asarray(features[-round(config.proxy_share * len(features)) :])
    auxiliary, width, regularization = kulsif_kernel(known, key)

    def kmeans(known, auxiliary, asked):
        fitted, _ = kmeans_fit(known, config.centroids, key)
        return edgefd_mask(asked, fitted, id_threshold(known, fitted, 95.0))

    def solve(known, auxiliary, asked):
        return kulsif_fit(known, auxiliary, width, regularization)

    def kulsif(known, auxiliary, asked):
        alpha = solve(known, auxiliary, asked)
        return kulsif_ratio(asked, known, auxiliary, alpha, width, regularization)

    timed = {"kmeans": kmeans, "kulsif_fit": solve, "kulsif": kulsif}
    timed = {label: jax.jit(function) for label, function in timed.items()}
    seconds: dict[str, list[float]] = {label: [] for label in timed}
    for repeat in range(10):
        for label, function in timed.items():
            started = time.perf_counter()
            jax.block_until_ready(function(known, auxiliary, asked))
            if repeat:
                seconds[label].append(time.perf_counter() - started)
    setting = cost_setting(name, features.shape[1])
    return [
        Record(label, seed, "filter_ms", 1e3 * float(np.median(s)), sum(s), setting)
        for label, s in seconds.items()
    ]


def cost_setting(name: str, features: int) -> str:
    """Return the name of the table of filters' costs on a data set."""
    return f"cost on {name}, {features} features"
