"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass

from experiments.common.configs import NetworkConfig
from jaxkd import data

CLASSES = 10


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        datasets: names of ``jaxkd.data.DATASETS``, or ``tfds/…``; a table each, and
            partition.
        train_examples: where the training set and the test set together are cut; 0
            keeps their own border.
        extractors: (data set, folder) of a frozen network below ``JAXKD_DATA``, in
            whose ``pooled`` features the filters measure distances; others' filters
            read pixels.
        clients: how many.
        partitions: kinds of ``jaxkd.data.partition``.
        classes_per_client: of the partition ``weak``.
        network: of each client; a ``lenet`` takes its data set's size of images.
        optimizer: ``adam``, or ``sgd`` without momentum.
        learning_rate: of it.
        decay_every: rounds after which the rate falls to 0.7 of itself; 0 for never.
        rounds: how many.
        local_steps: on labels in a round.
        local_batch_size: of them.
        distill_steps: in a round.
        distill_batch_size: of them.
        temperature: of shared probabilities.
        proxy_share: of each client's examples that it gives as proxies.
        proxy_size: proxies in a round; 0 for all that the clients share evenly.
        centroids: of each client's k-means.
        percentile: of a client's own distances, within which a proxy passes.
        sharpening: DS-FL's temperature.
        ambiguity: the least largest probability that Selective-FD's server keeps.
        evaluate_every: rounds between evaluations.
        cost_datasets: on which the filters are timed, with all pixels.
    """

    datasets: tuple[str, ...] = ("digits",)
    train_examples: int = 1400
    extractors: tuple[tuple[str, str], ...] = ()
    clients: int = 10
    partitions: tuple[data.Kind, ...] = ("strong", "weak", "iid")
    classes_per_client: int = 3
    network: NetworkConfig = NetworkConfig("mlp", {"features": 64, "widths": (64,)})
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    decay_every: int = 0
    rounds: int = 30
    local_steps: int = 10
    local_batch_size: int = 32
    distill_steps: int = 10
    distill_batch_size: int = 64
    temperature: float = 1.0
    proxy_share: float = 0.2
    proxy_size: int = 0
    centroids: int = 5
    percentile: float = 95.0
    sharpening: float = 0.1
    ambiguity: float = 0.5
    evaluate_every: int = 5
    cost_datasets: tuple[str, ...] = ("digits", "mnist")


PRESETS = {
    "small": Config(),
    "paper": Config(
        datasets=("tfds/mnist", "tfds/fashion_mnist", "tfds/cifar10"),
        train_examples=0,
        extractors=(("tfds/cifar10", "weights/cifar10_extractor"),),
        network=NetworkConfig("lenet"),
        optimizer="sgd",
        learning_rate=0.1,
        decay_every=5000,
        rounds=20_000,
        local_steps=1,
        local_batch_size=64,
        distill_steps=10,
        distill_batch_size=512,
        proxy_share=0.1,
        proxy_size=5120,
        evaluate_every=50,
        cost_datasets=(),
    ),
}
IMAGES = {"tfds/mnist": (28, 1), "tfds/fashion_mnist": (28, 1), "tfds/cifar10": (32, 3)}
"""Size and channels of the paper's data sets."""


def table(dataset: str, kind: str) -> str:
    """Return a table's name: the partition's, after any data set but the digits."""
    return kind if dataset == "digits" else f"{dataset} {kind}"
