"""Accuracy, likelihood, calibration and fidelity of a classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.data.sources import Source
from jaxkd.losses.basics import as_float
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.types import Network, Variables


def accuracy(
    logits: Float[Array, "examples classes"], labels: Int[Array, "examples"]
) -> Float[Array, ""]:
    """Return the share of examples whose largest logit is the label's."""
    return jnp.mean(logits.argmax(-1) == labels)


def negative_log_likelihood(
    logits: Float[Array, "examples classes"], labels: Int[Array, "examples"]
) -> Float[Array, ""]:
    """Return the mean cross-entropy, in nats."""
    return cross_entropy_loss(logits, labels).mean()


def expected_calibration_error(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, "examples"],
    bins: int = 15,
) -> Float[Array, ""]:
    """Return the mean gap between confidence and accuracy over confidence bins.

    Guo et al. 2017, arXiv:1706.04599, Eq. 3: equal-width bins (lower, upper], each
    weighted by its share of the examples.

    Args:
        logits: class scores.
        labels: class indices.
        bins: equal-width bins of (0, 1].
    """
    confidence = jax.nn.softmax(as_float(logits)).max(-1)
    gap = confidence - (logits.argmax(-1) == labels)
    which = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return jnp.abs(jnp.zeros(bins).at[which].add(gap)).sum() / len(labels)


def agreement(
    logits: Float[Array, "examples classes"], other: Float[Array, "examples classes"]
) -> Float[Array, ""]:
    """Return the share of examples for which both have the same top class.

    Stanton et al. 2021, arXiv:2106.05945, "top-1 agreement".
    """
    return jnp.mean(logits.argmax(-1) == other.argmax(-1))


@jax.jit
def classification_metrics(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, "examples"],
    teacher_logits: Float[Array, "examples classes"] | None = None,
) -> dict[str, Array]:
    """Return ``accuracy``, ``nll``, ``ece``, and with a teacher ``agreement``."""
    metrics = {
        "accuracy": accuracy(logits, labels),
        "nll": negative_log_likelihood(logits, labels),
        "ece": expected_calibration_error(logits, labels),
    }
    if teacher_logits is not None:
        metrics["agreement"] = agreement(logits, teacher_logits)
    return metrics


def predictor(
    network: Network, source: Source, batch_size: int = 1000
) -> Callable[[Variables], np.ndarray]:
    """Return ``variables -> logits`` (examples, classes) for all of a source.

    The forward pass is compiled once; the last batch is filled up and cut.

    Args:
        network: to run in evaluation mode.
        source: its ``image`` array is the input.
        batch_size: examples in one forward pass.
    """
    size = min(batch_size, len(source))
    forward = jax.jit(lambda variables, x: network.apply(variables, x)[0].logits)
    parts = [
        source.arrays["image"][start : start + size]
        for start in range(0, len(source), size)
    ]
    missing = size - len(parts[-1])
    parts[-1] = np.pad(parts[-1], [(0, missing)] + [(0, 0)] * (parts[-1].ndim - 1))
    inputs = jax.device_put(parts)

    def predict(variables: Variables) -> np.ndarray:
        logits = [np.asarray(forward(variables, x)) for x in inputs]
        return np.concatenate(logits)[: len(source)]

    return predict


def evaluator(
    network: Network,
    source: Source,
    teacher_logits: np.ndarray | None = None,
    batch_size: int = 1000,
) -> Callable[[Variables], dict[str, float]]:
    """Return ``variables -> metrics`` of a network on a source.

    Args:
        network: the student.
        source: the examples, with ``label``.
        teacher_logits: the teacher's on the same source, for ``agreement``.
        batch_size: examples in one forward pass.
    """
    predict = predictor(network, source, batch_size)
    labels = source.arrays["label"]

    def evaluate(variables: Variables) -> dict[str, float]:
        metrics = classification_metrics(predict(variables), labels, teacher_logits)
        return {name: float(value) for name, value in metrics.items()}

    return evaluate
