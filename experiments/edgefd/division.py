"""The data: loaded, described by features, divided among clients, dealt in rounds."""

from dataclasses import replace
from typing import Any

import numpy as np

from experiments.edgefd.config import Config
from experiments.edgefd.filters import Federation
from jaxkd import data
from jaxkd.evaluation.classification import predictor
from jaxkd.federated import Rounds
from jaxkd.interop import load_pretrained
from jaxkd.types import Outputs

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
    train, test = (
        data.Source(
            f"{name}[{config.train_examples}]/{part}",
            {key: array[rows] for key, array in joined.items()},
            dataset.train.classes,
        )
        for part, rows in (
            ("train", slice(config.train_examples)),
            ("test", slice(config.train_examples, None)),
        )
    )
    return data.Dataset(train, test, dataset.mean, dataset.std), scale


def features_of(
    config: Config, name: str, source: data.Examples, scale: Any
) -> np.ndarray:
    """Return all examples' features: scaled pixels, or a frozen network's.

    Raises:
        FileNotFoundError: the frozen network is not there; it says what to put where.
    """
    folder = dict(config.extractors).get(name)
    if folder is not None:
        where = data.data_file(f"{folder}/config.json").parent
        network, variables = load_pretrained(where)

        def apply(variables, inputs, **kwargs):
            found, _ = network.apply(variables, inputs, taps=("pooled",))
            return Outputs(found.features["pooled"]), variables

        pooled = replace(network, apply=apply)
        return predictor(pooled, source, transform=scale)(variables)
    parts = np.array_split(np.arange(len(source)), -(-len(source) // 1000))
    batches = (source.take(rows) for rows in parts)
    images = [(b if scale is None else scale(b, None))["image"] for b in batches]
    return np.concatenate(images).reshape(len(source), -1)


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


def rounds_of(
    config: Config,
    source: data.Examples,
    federation: Federation,
    masks: np.ndarray,
    scale: Any,
) -> Rounds:
    """Return the rounds' data."""
    even = len(federation.proxies) // config.clients * config.clients
    return Rounds(
        source,
        federation.parts,
        federation.proxies,
        masks,
        config.rounds,
        config.local_steps * config.local_batch_size,
        config.proxy_size or even,
        federation.seed,
        scale,
    )
