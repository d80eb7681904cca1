"""A network's mean feature of every class, in one pass over all examples."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.arguments import checked, count
from jaxkd.data import Examples, Transform
from jaxkd.evaluation.classification import labelled_inputs
from jaxkd.losses.directions import class_means, class_sums
from jaxkd.network import Network
from jaxkd.types import Inputs, Variables


@checked(batch_size=count)
def feature_means(
    network: Network,
    variables: Variables,
    source: Examples,
    *,
    tap: str = "pooled",
    batch_size: int = 1000,
    transform: Transform | None = None,
) -> Float[np.ndarray, "classes channels"]:
    """Return each class's mean of a tap, as `jaxkd.methods.nd` takes it.

    Args:
        network: a teacher.
        variables: its.
        source: labelled examples, such as all that are trained on.
        tap: a feature (batch, channels).
        batch_size: examples in one forward pass.
        transform: of each batch, without randomness, such as ``Normalize``.

    Raises:
        ValueError: the source has no labels, or a class has no example.
    """

    @jax.jit
    def features(variables: Variables, inputs: Inputs) -> Array:
        return network.apply(variables, inputs, taps=(tap,))[0].features[tap]

    size = min(batch_size, len(source))
    totals = None
    for inputs, labels in labelled_inputs(network, source, size, transform):
        if labels is None:
            raise ValueError(f"data set {source.name!r} has no label to average by")
        found = features(variables, inputs)[: len(labels)]
        sums = class_sums(found, jnp.asarray(labels), source.classes)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    assert totals is not None
    empty = np.flatnonzero(np.asarray(totals[1]) == 0)
    if len(empty):
        raise ValueError(
            f"class {empty[0]} of {source.name!r} has no example, and {len(empty) - 1} "
            "more: give examples of all classes, or let jaxkd.methods.nd average "
            "those of its batches (means=None)"
        )
    return np.asarray(class_means(*totals))
