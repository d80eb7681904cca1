"""EdgeFD: clients share predictions only of samples that are like their own data.

Mujtaba et al. 2025 (arXiv:2508.14769): in federated distillation, clients whose data
differ spoil the common ensemble with predictions of classes they never saw. Each client
fits k-means on its own data once, and shares only predictions of proxy samples near a
centroid. That is claimed to reach nearly the accuracy of identically distributed
clients, for a fraction of the cost of a kernel's density ratio.

``small`` divides scikit-learn's digits among ten perceptrons, ``paper`` MNIST,
Fashion-MNIST and CIFAR-10 among ten convolutional networks.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.training import build, student_records
from experiments.edgefd.claims import CLAIMS
from experiments.edgefd.config import CLASSES, IMAGES, PRESETS, SLICE, Config, table
from experiments.edgefd.division import divide, features_of, load_dataset, rounds_of
from experiments.edgefd.filters import FILTERS, filter_costs, filter_quality
from jaxkd import data, training
from jaxkd.evaluation.classification import evaluator, example_labels
from jaxkd.losses import ambiguity_filter, era_sharpen, masked_ensemble
from jaxkd.network import Network
from jaxkd.programs import Client, fd_client, federated_distillation
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record, select
from jaxkd.types import Batch, Program

__all__ = ["CLAIMS", "MESH", "PRESETS", "SLICE", "Config", "full_scale", "run"]

MESH = "one"
"""Ten such networks do not fill one chip."""


def client_of(config: Config, dataset: str) -> tuple[Network, Client]:
    """Return one client's network and its steps."""
    name, arguments = config.network
    if name == "lenet":
        size, channels = IMAGES[dataset]
        arguments = {"size": size, "channels_in": channels, **arguments}
    network = build((name, arguments), CLASSES)
    steps = config.local_steps + config.distill_steps
    rate: Any = config.learning_rate
    if config.decay_every:
        rate = optax.exponential_decay(
            rate, config.decay_every * steps, 0.7, staircase=True
        )
    optimizer = {"adam": optax.adam, "sgd": optax.sgd}[config.optimizer](rate)
    client = fd_client(
        network,
        optimizer,
        local_steps=config.local_steps,
        distill_steps=config.distill_steps,
        distill_batch_size=config.distill_batch_size,
        temperature=config.temperature,
    )
    return network, client


def programs(config: Config, client: Client) -> dict[str, Program]:
    """Return each method's round; those with a client filter alone share one."""

    def sharpened(predictions, masks):
        mean, valid = masked_ensemble(predictions, masks)
        return era_sharpen(mean, config.sharpening), valid

    def unambiguous(predictions, masks):
        mean, valid = masked_ensemble(predictions, masks)
        return mean, valid & ambiguity_filter(mean, config.ambiguity)

    plain = federated_distillation(client)
    return {
        "local": federated_distillation(client, None),
        "fedmd": plain,
        "dsfl": federated_distillation(client, sharpened),
        "selective_fd": federated_distillation(client, unambiguous),
        "edgefd": plain,
        "oracle": plain,
    }


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train all methods' clients on every division, and time the filters."""
    records = []
    for name in config.datasets:
        mine = run_dataset(config, name, seeds, run)
        # The accuracy without any division stands in the other tables to compare with.
        reference = select(mine, "edgefd", "last_accuracy", table(name, "iid"))
        for kind in config.partitions:
            records += [r for r in mine if r.setting == table(name, kind)]
            if kind != "iid":
                records += [
                    replace(r, method="edgefd_iid", setting=table(name, kind))
                    for r in reference
                ]
    for name in config.cost_datasets:
        try:
            images = data.load(name).train.arrays["image"]
        except FileNotFoundError as error:
            print(f"The filters are not timed on {name}: {error}")
            continue
        records += run_costs(config, name, images, seeds, run)
    return records


def run_costs(
    config: Config, name: str, images: np.ndarray, seeds: Sequence[int], run: Run
) -> list[Record]:
    """Return the filters' times for one of the clients that share a training set."""
    features = images.reshape(len(images), -1)
    held = len(images) // config.clients
    proxies = round(config.proxy_share * len(images))
    return [
        record
        for seed in seeds
        for record in run.part(
            f"cost-{name}/seed{seed}",
            lambda folder, seed=seed: filter_costs(
                features, name, seed, config.centroids, held, proxies
            ),
        )
    ]


def run_dataset(
    config: Config, name: str, seeds: Sequence[int], run: Run
) -> list[Record]:
    """Return one data set's records, of all divisions, methods and seeds."""
    dataset, scale = load_dataset(config, name)
    labels = example_labels(dataset.train)
    features = features_of(config, name, dataset.train, scale)
    network, client = client_of(config, name)
    methods = programs(config, client)
    evaluate = evaluator(network, dataset.test, transform=scale)

    def mean_of_clients(state: Any) -> dict[str, float]:
        found = [
            evaluate(jax.tree.map(lambda x, i=i: x[i], state.clients.variables))
            for i in range(config.clients)
        ]
        return {key: float(np.mean([f[key] for f in found])) for key in found[0]}

    def train(method: str, kind: data.Kind, seed: int, folder: Any) -> list[Record]:
        started = time.perf_counter()
        federation = divide(config, labels, features, kind, seed)
        filtered = FILTERS.get(method, FILTERS["fedmd"])
        masks = filtered(federation, config.centroids, config.percentile)
        rounds = rounds_of(config, dataset.train, federation, masks, scale)
        with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            _, history = training.fit(
                methods[method],
                data.batches(rounds, config.clients, epochs=1, seed=None),
                key=jax.random.key(seed),
                evaluate=mean_of_clients,
                evaluate_every=config.evaluate_every,
                checkpoints=checkpoints,
                checkpoint_every=max(config.rounds // 4, 1),
                progress=run.progress,
                name=f"{name} {kind} {method} seed {seed}",
            )
        further = {}
        if method != "local":
            further = filter_quality(masks, federation)
            further["upload_kb"] = history[-1]["train_upload_bytes"] / 1000
        seconds = time.perf_counter() - started
        setting = table(name, kind)
        return student_records(setting, method, seed, history, further, seconds)

    return [
        record
        for kind in config.partitions
        for method in methods
        for seed in seeds
        for record in run.part(
            f"{name}/{kind}/{method}/seed{seed}".replace("tfds/", "tfds-"),
            lambda folder, m=method, k=kind, s=seed: train(m, k, s, folder),
        )
    ]


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return a round of EdgeFD on each data set, with the shapes of its batch."""
    found = {}
    clients = config.clients
    for name in config.datasets:
        size, channels = IMAGES[name]

        def images(number: int, size=size, channels=channels) -> jax.ShapeDtypeStruct:
            shape = (clients, number, size, size, channels)
            return jax.ShapeDtypeStruct(shape, jnp.float32)

        local = config.local_steps * config.local_batch_size
        each = config.proxy_size // clients
        found[name] = (
            federated_distillation(client_of(config, name)[1]),
            {
                "private": {
                    "image": images(local),
                    "label": jax.ShapeDtypeStruct((clients, local), jnp.int32),
                },
                "proxy": {"image": images(each)},
                "mask": jax.ShapeDtypeStruct((clients, each, clients), jnp.bool_),
                "index": jax.ShapeDtypeStruct((clients,), jnp.int32),
            },
        )
    return found
