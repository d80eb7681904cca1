"""EdgeFD: clients share predictions only of samples that are like their own data.

Mujtaba et al. 2025 (arXiv:2508.14769): in federated distillation, clients whose data
differ spoil the common ensemble with predictions of classes they never saw. Each client
fits k-means on its own data once, and shares only predictions of proxy samples near a
centroid. That is claimed to reach nearly the accuracy of identically distributed
clients, for a fraction of the cost of a kernel's density ratio.

``small`` divides scikit-learn's digits among ten perceptrons, ``paper`` MNIST,
Fashion-MNIST and CIFAR-10 among ten convolutional networks.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.classification import accuracies
from experiments.common.configs import choose
from experiments.edgefd.config import CLASSES, IMAGES, PRESETS, Config, table
from experiments.edgefd.federation import (
    Federation,
    cost_setting,
    divide,
    features_of,
    filter_costs,
    filter_quality,
    load_dataset,
    shared,
)
from jaxkd import data
from jaxkd.evaluation.classification import evaluator, example_labels
from jaxkd.federated import Rounds
from jaxkd.losses import ambiguity_filter, era_sharpen, masked_ensemble
from jaxkd.network import Network
from jaxkd.programs import Client, fd_client, federated_distillation
from jaxkd.reporting.claims import Claim, contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.records import Record, select
from jaxkd.reporting.run import Arm, History, Run, Task, run_arms
from jaxkd.types import Batch, Program, Variables

declare(
    filter_precision=Metric("filter precision %", higher_is_better=True),
    filter_recall=Metric("filter recall %", higher_is_better=True),
    upload_kb=Metric("upload kB a round"),
    filter_ms=Metric("filter ms", higher_is_better=False),
)

BEFORE = "fixed before the first run, by an earlier trial"


def claims_of(setting: str, kind: str) -> list[Claim]:
    """Return the claims about one table."""
    better = functools.partial(contrast, "edgefd", metric="last_accuracy")
    better = functools.partial(better, setting=setting)
    if kind == "iid":
        because = "a fifth of the gain that is claimed for other partitions"
        return [better("fedmd", margin=0.01, kind="equivalence", because=because)]
    return [
        better("fedmd", margin=0.05),
        better("selective_fd"),
        better("oracle", margin=0.04, kind="non-inferiority", because=BEFORE),
        better("edgefd_iid", margin=0.07, kind="non-inferiority", because=BEFORE),
    ]


EXPECTED_FILTER = {
    ("strong", "filter_precision"): 0.87,
    ("strong", "filter_recall"): 1.00,
    ("weak", "filter_precision"): 0.75,
    ("weak", "filter_recall"): 0.93,
}
"""Of EdgeFD's filter in an earlier trial of the small setting."""

CLAIMS = [
    *(
        claim
        for preset in PRESETS.values()
        for dataset in preset.datasets
        for kind in preset.partitions
        for claim in claims_of(table(dataset, kind), kind)
    ),
    *(
        contrast(
            "edgefd", value, metric, 0.05, "equivalence", setting=kind, because=BEFORE
        )
        for (kind, metric), value in EXPECTED_FILTER.items()
    ),
    *(
        contrast("kmeans", "kulsif_fit", "filter_ms", setting=cost_setting(*of))
        for of in (("digits", 64), ("mnist", 784))
    ),
]


def client_of(config: Config, dataset: str) -> tuple[Network, Client]:
    """Return one client's network and its steps."""
    network = config.network
    if network.name == "lenet":
        size, channels = IMAGES[dataset]
        arguments = {"size": size, "channels_in": channels, **network.arguments}
        network = replace(network, arguments=arguments)
    network = network.build(CLASSES)
    rate: Any = config.learning_rate
    if config.decay_every:
        steps = config.decay_every * (config.local_steps + config.distill_steps)
        rate = optax.exponential_decay(rate, steps, 0.7, staircase=True)
    optimizers = {"adam": optax.adam, "sgd": optax.sgd}
    client = fd_client(
        network,
        choose("optimizer", [config.optimizer], optimizers)[config.optimizer](rate),
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


def dataset_arms(config: Config, name: str) -> Callable:
    """Return the arms of one data set's tables, which are compiled once for all."""
    dataset, scale = load_dataset(config, name)
    labels = example_labels(dataset.train)
    features = features_of(config, name, dataset.train, scale)
    network, client = client_of(config, name)
    methods = programs(config, client)
    evaluate = evaluator(network, dataset.test, transform=scale)
    # All clients' variables at once are not the zoo's network, to be exported.
    clients = replace(network, spec=None)

    def mean_of_clients(variables: Variables) -> dict[str, float]:
        found = [
            evaluate(jax.tree.map(lambda x, i=i: x[i], variables))
            for i in range(config.clients)
        ]
        return {key: float(np.mean([f[key] for f in found])) for key in found[0]}

    def row(method: str, kind: data.Kind, federation: Federation) -> tuple[Arm, Task]:
        @functools.cache
        def masks() -> np.ndarray:
            return shared(method, config, federation)

        def batches(seed: int):
            rounds = rounds_of(config, dataset.train, federation, masks(), scale)
            return data.batches(rounds, config.clients, epochs=1, seed=None)

        def measure(state: Any, history: History) -> dict[str, float]:
            if method == "local":
                return {}
            upload = history[-1]["train_upload_bytes"] / 1000
            return {**filter_quality(masks(), federation), "upload_kb": upload}

        return Arm(
            method,
            methods[method],
            clients,
            lambda state: state.clients.variables,
            measure,
        ), Task(
            table(name, kind),
            batches,
            None,
            lambda _: mean_of_clients,
            config.evaluate_every,
            max(config.rounds // 4, 1),
            accuracies,
        )

    def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
        for kind in config.partitions:
            federation = divide(config, labels, features, kind, seed)
            for method in methods:
                yield row(method, kind, federation)

    return arms


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train all methods' clients on every division, and time the filters."""
    records = []
    for name in config.datasets:
        mine = run_arms(dataset_arms(config, name), config, seeds, run, anew=True)
        # The accuracy without any division stands in the other tables to compare with.
        reference = select(mine, "edgefd", "last_accuracy", table(name, "iid"))
        for kind in config.partitions:
            setting = table(name, kind)
            records += [r for r in mine if r.setting == setting]
            if kind != "iid":
                records += [
                    replace(r, method="edgefd_iid", setting=setting) for r in reference
                ]
    for name in config.cost_datasets:
        try:
            for seed in seeds:
                records += run.part(
                    f"cost-{name}/seed{seed}",
                    lambda folder, n=name, s=seed: filter_costs(config, n, s),
                )
        except FileNotFoundError as error:
            print(f"The filters are not timed on {name}: {error}")
    return records


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


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    full_scale=full_scale,
    mesh="one",  # Ten such networks do not fill one chip.
    seeds={"small": 5},
    varies=("split", "student", "order"),
)
