"""Other ways to divide a class than LELP's, and what a division has found."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxkd.federated.clustering import kmeans_fit
from jaxkd.losses import SubclassDirections, class_means, class_sums


def assigned(
    row: str,
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    subclasses: int,
    key: PRNGKeyArray,
) -> np.ndarray:
    """Return each example's sub-class, as clusters of its class's features.

    Args:
        row: one of `settings.CLUSTERED`.
        features: (examples, channels).
        labels: class indices.
        classes: their number.
        subclasses: of each class.
        key: of what is random.
    """
    found = np.zeros(len(labels), np.int32)
    for c in range(classes):
        own = np.flatnonzero(labels == c)
        mine = jax.random.fold_in(key, c)
        found[own] = c * subclasses + _clusters(row, features[own], subclasses, mine)
    return found


def _clusters(row: str, x: np.ndarray, k: int, key: PRNGKeyArray) -> np.ndarray:
    if row == "random":
        return np.asarray(jax.random.randint(key, (len(x),), 0, k))
    if row == "agglomerative":
        from sklearn.cluster import AgglomerativeClustering

        return AgglomerativeClustering(k).fit_predict(x)
    if row == "tsne_kmeans":
        from sklearn.manifold import TSNE

        seed = int(jax.random.randint(key, (), 0, 1000))
        x = TSNE(perplexity=min(30, len(x) // 4), random_state=seed).fit_transform(x)
    centroids, _ = kmeans_fit(jnp.asarray(x), k, key)
    return np.square(x[:, None] - np.asarray(centroids)).sum(-1).argmin(1)


def random_directions(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    subclasses: int,
    key: PRNGKeyArray,
) -> SubclassDirections:
    """Return random orthonormal directions, of mean variance 1 as LELP's are."""
    means = class_means(
        *class_sums(jnp.asarray(features), jnp.asarray(labels), classes)
    )
    bases = jax.random.orthogonal(key, features.shape[1], (classes,))[..., :subclasses]
    scales = [
        jnp.sqrt(jnp.var((features[labels == c] - means[c]) @ bases[c], 0).mean())
        for c in range(classes)
    ]
    return SubclassDirections(means, bases / jnp.stack(scales)[:, None, None])


def purity(assignments: np.ndarray, fine: np.ndarray) -> float:
    """Return the share of examples of the most frequent finer label of their part."""
    counts = np.zeros((assignments.max() + 1, fine.max() + 1))
    np.add.at(counts, (assignments, fine), 1)
    return float(counts.max(1).sum() / len(fine))
