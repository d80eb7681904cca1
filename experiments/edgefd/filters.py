"""The filters under comparison: what each client shares, how well, at what cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.federated import (
    edgefd_mask,
    id_threshold,
    kmeans_fit,
    kulsif_fit,
    kulsif_ratio,
)
from jaxkd.reporting.records import Record

AUXILIARY = 500
"""Uniform samples that the density ratio is taken to."""

fit_centroids = jax.jit(kmeans_fit, static_argnames=("k", "iterations"))


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


def everything(federation: Federation, centroids: int, percentile: float) -> np.ndarray:
    """Return the masks of clients that share all they are asked about."""
    return np.ones((len(federation.parts), len(federation.proxies)), bool)


def oracle(federation: Federation, centroids: int, percentile: float) -> np.ndarray:
    """Return the masks of clients that know the proxies' classes."""
    return federation.held


def near_centroids(
    federation: Federation, centroids: int, percentile: float
) -> np.ndarray:
    """Return EdgeFD's masks."""
    proxies = federation.features[federation.proxies]
    masks = []
    for client, part in enumerate(federation.parts):
        key = jax.random.fold_in(jax.random.key(federation.seed), client)
        screen = centroid_filter(federation.features[part], key, centroids, percentile)
        masks.append(screen(proxies, federation.owner == client))
    return np.stack(masks)


def centroid_filter(
    features: np.ndarray, key: jax.Array, centroids: int, percentile: float
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Fit EdgeFD's filter on a client's features; return ``(proxies, own) -> mask``."""
    known = jnp.asarray(features)
    fitted, _ = fit_centroids(known, centroids, key)
    threshold = id_threshold(known, fitted, percentile)

    def screen(proxies: np.ndarray, own: np.ndarray) -> np.ndarray:
        return np.asarray(
            edgefd_mask(jnp.asarray(proxies), fitted, threshold, jnp.asarray(own))
        )

    return screen


def density_ratio(
    federation: Federation, centroids: int, percentile: float
) -> np.ndarray:
    """Return the masks of Selective-FD's clients, by a kernel's density ratio.

    The threshold lets the same share of a client's own samples pass as EdgeFD's.
    """
    proxies = jnp.asarray(federation.features[federation.proxies])
    masks = []
    for client, part in enumerate(federation.parts):
        known = jnp.asarray(federation.features[part])
        likely = _likely(proxies, known, *kernel(known, federation.seed), percentile)
        masks.append(likely | (federation.owner == client))
    return np.stack(jax.device_get(masks))


@jax.jit
def _likely(proxies, known, auxiliary, width, regularization, percentile):
    """Return where the ratio is at least the own samples' lowest but a few."""
    alpha = kulsif_fit(known, auxiliary, width, regularization)
    ratios = [
        kulsif_ratio(x, known, auxiliary, alpha, width, regularization)
        for x in (known, proxies)
    ]
    return ratios[1] >= jnp.percentile(ratios[0], 100 - percentile)


def kernel(known: jax.Array, seed: int) -> tuple[jax.Array, float, float]:
    """Return auxiliary samples, width and λ by rules that look at no result.

    The samples are uniform in the range of each feature's values, the width is the
    median distance of known samples, and λ is min(n, m)^−0.9 (Kanamori et al. 2012).
    """
    auxiliary = jax.random.uniform(
        jax.random.key(seed),
        (AUXILIARY, known.shape[1]),
        minval=known.min(),
        maxval=known.max(),
    )
    some = np.asarray(known[:500])
    square = (some**2).sum(1)
    distances = np.sqrt(np.maximum(square[:, None] + square - 2 * some @ some.T, 0))
    width = float(np.median(distances[np.triu_indices(len(some), 1)]))
    return auxiliary, width, float(min(len(known), AUXILIARY) ** -0.9)


FILTERS: dict[str, Callable[[Federation, int, float], np.ndarray]] = {
    "fedmd": everything,
    "dsfl": everything,
    "selective_fd": density_ratio,
    "edgefd": near_centroids,
    "oracle": oracle,
}
"""Each method's masks (clients, proxies)."""


def filter_quality(masks: np.ndarray, federation: Federation) -> dict[str, float]:
    """Return precision and recall of the (client, proxy) pairs that are shared.

    A pair is right if the client holds examples of the proxy's class.
    """
    right = (masks & federation.held).sum()
    return {
        "filter_precision": right / max(masks.sum(), 1),
        "filter_recall": right / federation.held.sum(),
    }


def filter_costs(
    features: np.ndarray, name: str, seed: int, centroids: int, held: int, proxies: int
) -> list[Record]:
    """Return milliseconds of one client's filters, measured in turns on one machine.

    ``kmeans`` is fit and test, ``kulsif_fit`` the kernel's fit alone, and ``kulsif``
    its fit and test. Each is the median of nine runs, after the compiler's.

    Args:
        features: of a data set.
        name: of the data set.
        seed: of k-means and of the auxiliary samples.
        centroids: of k-means.
        held: how many of the examples are the client's.
        proxies: how many it tests.
    """
    known, asked = jnp.asarray(features[:held]), jnp.asarray(features[-proxies:])
    auxiliary, width, regularization = kernel(known, seed)
    key = jax.random.key(seed)

    def kmeans(known, auxiliary, asked):
        fitted, _ = kmeans_fit(known, centroids, key)
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
