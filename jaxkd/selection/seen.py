"""What networks say of every example of a data set: the evidence that scores judge by.

The networks are several checkpoints of one run, or of several runs; scores say which.
Any network and any source will do, and one forward pass is compiled for all.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxkd.arguments import checked, count
from jaxkd.checks import check_labels
from jaxkd.data.sources import Examples
from jaxkd.data.transforms import Transform
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.network import Network
from jaxkd.types import Inputs, Variables


class Seen(NamedTuple):
    """What some networks say of each example; a score says what it needs.

    Attributes:
        labels: (examples,).
        logits: (networks, examples, classes).
        features: (networks, examples, features), what the last layer reads.
        right: (networks, examples) booleans, whether a network has the label right, in
            place of logits where they are too many to keep.
        gradient_norms: (networks, examples), of `gradient_norms`.
        in_subset: (networks, examples) booleans, whether a network was trained on it.
    """

    labels: Any
    logits: Any = None
    features: Any = None
    right: Any = None
    gradient_norms: Any = None
    in_subset: Any = None

    def need(self, *names: str) -> tuple[Array, ...]:
        """Return some of its arrays; ``right`` follows from the logits.

        Raises:
            ValueError: one is missing or of other examples than the labels, or labels
                are no classes.
        """
        found = []
        for name in names:
            value = getattr(self, name)
            if name == "right" and value is None and self.logits is not None:
                value = jnp.argmax(self.logits, -1) == jnp.asarray(self.labels)
            if value is None:
                raise ValueError(f"seen.{name} is None, but this score needs it")
            value = jnp.asarray(value)
            if value.shape[1:2] != jnp.shape(self.labels):
                raise ValueError(
                    f"seen.{name} has shape {value.shape}, but there are "
                    f"{len(self.labels)} labels: give (networks, examples, …)"
                )
            if name == "logits":
                check_labels("seen.labels", self.labels, value.shape[-1])
            found.append(value)
        return tuple(found)


@checked(batch_size=count)
def observe(
    network: Network,
    variables: Sequence[Variables],
    source: Examples,
    *,
    tap: str | None = None,
    batch_size: int = 1000,
    transform: Transform | None = None,
) -> Seen:
    """Return the logits of every example, and what a tap reads, under some variables.

    Args:
        network: in evaluation mode.
        variables: of several checkpoints or runs, such as ``state.student``.
        source: the examples, with ``label``.
        tap: the features' name, such as ``"pooled"``; None for logits alone.
        batch_size: examples in one forward pass.
        transform: of each batch, without randomness, such as ``Normalize``.

    Raises:
        ValueError: no variables, or a source without labels.
    """
    _check(variables)
    forward, size = _forward(network, () if tap is None else (tap,)), len(source)
    labels, logits, features = np.zeros(0), [], []
    for some in variables:
        batches = _batches(network, source, batch_size, transform)
        parts = [(*jax.device_get(forward(some, x)), label) for x, label in batches]
        logits.append(np.concatenate([z for z, _, _ in parts])[:size])
        labels = np.concatenate([label for _, _, label in parts])[:size]
        if tap is not None:
            features.append(np.concatenate([f[tap] for _, f, _ in parts])[:size])
    return Seen(labels, np.stack(logits), np.stack(features) if features else None)


@functools.lru_cache(maxsize=8)
def _forward(network: Network, taps: tuple[str, ...]) -> Any:
    @jax.jit
    def forward(variables: Variables, inputs: Inputs):
        outputs, _ = network.apply(variables, inputs, taps=taps)
        return outputs.logits, outputs.features

    return forward


@checked()
def example_gradients(
    network: Network, variables: Variables, inputs: Inputs, labels: Any
) -> PyTree:
    """Return the cross-entropy's gradient by the parameters, for each example alone.

    Args:
        network: in evaluation mode.
        variables: whose ``params`` the gradients are of.
        inputs: of a batch.
        labels: of the batch, class indices.

    Returns:
        Like ``params``, each array with an axis of examples before its own: as much
        memory as that many copies of the network.
    """

    def loss(params: PyTree, one: Inputs, label: Array) -> Array:
        inputs = jax.tree.map(lambda x: x[None], one)
        outputs, _ = network.apply({**variables, "params": params}, inputs)
        return cross_entropy_loss(outputs.logits, label[None]).sum()

    gradient = jax.vmap(jax.grad(loss), (None, 0, 0))
    return gradient(variables["params"], inputs, jnp.asarray(labels))


@checked(batch_size=count)
def gradient_norms(
    network: Network,
    variables: Sequence[Variables],
    source: Examples,
    *,
    batch_size: int = 32,
    transform: Transform | None = None,
) -> Float[np.ndarray, "networks examples"]:
    """Return the norms of every example's gradient by all parameters.

    Args:
        network: in evaluation mode.
        variables: of several checkpoints or runs.
        source: the examples, with ``label``.
        batch_size: examples at a time, whose gradients are in memory together: as much
            as that many copies of the network. It changes no result.
        transform: of each batch, without randomness, such as ``Normalize``.

    Raises:
        ValueError: no variables, or a source without labels.
    """
    _check(variables)

    @jax.jit
    def norms(variables: Variables, inputs: Inputs, labels: Array) -> Array:
        gradients = example_gradients(network, variables, inputs, labels)
        return jax.vmap(optax.tree.norm)(gradients)

    found = []
    for some in variables:
        batches = _batches(network, source, batch_size, transform)
        parts = [jax.device_get(norms(some, *batch)) for batch in batches]
        found.append(np.concatenate(parts)[: len(source)])
    return np.stack(found)


def _check(variables: Sequence[Variables]) -> None:
    if not variables:
        raise ValueError(
            "variables is empty: give those of at least one network, such as "
            "[state.student]"
        )


def _batches(
    network: Network, source: Examples, size: int, transform: Transform | None
) -> Iterator[tuple[Inputs, Any]]:
    """Yield inputs and labels in order; the last batch is filled up from the start."""
    size = min(size, len(source))
    for start in range(0, len(source), size):
        batch = source.take(np.arange(start, start + size) % len(source))
        batch = batch if transform is None else transform(batch, None)
        if "label" not in batch:
            raise ValueError(f"data set {source.name!r} has no label to score by")
        yield network.read(batch), batch["label"]
