"""A network's features of all examples, in one pass."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxkd.arguments import checked
from jaxkd.data import Examples, Transform
from jaxkd.evaluation.classification import labelled_inputs
from jaxkd.network import Network
from jaxkd.types import Inputs, Outputs, Variables


@checked()
def tapped(
    network: Network,
    variables: Variables,
    source: Examples,
    taps: Sequence[str] = ("pooled",),
    *,
    batch_size: int = 1000,
    transform: Transform | None = None,
) -> Outputs:
    """Return a network's logits and features of all examples, in order, as NumPy's.

    Args:
        network: in evaluation mode.
        variables: its.
        source: the examples; all features must fit into memory.
        taps: of the features.
        batch_size: examples in one forward pass.
        transform: of each batch, without randomness, such as ``Normalize``.
    """

    @jax.jit
    def run(variables: Variables, inputs: Inputs) -> Outputs:
        return network.apply(variables, inputs, taps=tuple(taps))[0]

    size = min(batch_size, len(source))
    parts = [
        jax.tree.map(np.asarray, run(variables, inputs))
        for inputs, _ in labelled_inputs(network, source, size, transform)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(source)], *parts)
