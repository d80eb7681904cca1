"""Accuracy, likelihood, calibration and fidelity of a classifier."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count
from jaxkd.checks import check_labels
from jaxkd.data.sources import Examples, Source
from jaxkd.data.sources import example_labels as example_labels
from jaxkd.data.transforms import Transform
from jaxkd.evaluation.calibration import calibration_error
from jaxkd.losses.basics import as_float, log_softmax
from jaxkd.losses.divergences import cross_entropy_loss, kl_divergence
from jaxkd.network import Network
from jaxkd.types import Inputs, Variables, deployed


@checked()
def accuracy(
    logits: Float[Array, "examples classes"], labels: Int[Array, "examples"]
) -> Float[Array, ""]:
    """Return the share of examples whose largest logit is the label's."""
    check_labels("labels", labels, logits.shape[-1])
    return jnp.mean(logits.argmax(-1) == labels)


@checked()
def top_k_accuracy(
    logits: Float[Array, "examples classes"], labels: Int[Array, "examples"], k: int
) -> Float[Array, ""]:
    """Return the share of examples whose label is among the k largest logits.

    Of equal logits, that of the lower class counts as the larger.

    Raises:
        ValueError: k is not between 1 and the number of classes.
    """
    classes = logits.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be 1 to {classes} (the classes), got {k}")
    check_labels("labels", labels, classes)
    _, top = jax.lax.top_k(logits, k)
    return jnp.mean((top == labels[:, None]).any(-1))


@checked()
def negative_log_likelihood(
    logits: Float[Array, "examples classes"], labels: Int[Array, "examples"]
) -> Float[Array, ""]:
    """Return the mean cross-entropy, in nats."""
    check_labels("labels", labels, logits.shape[-1])
    return cross_entropy_loss(logits, labels).mean()


@checked(bins=count)
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
    check_labels("labels", labels, logits.shape[-1])
    confidence = jax.nn.softmax(as_float(logits)).max(-1)
    return calibration_error(confidence, logits.argmax(-1) == labels, bins)


@checked(bins=count)
def adaptive_calibration_error(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, "examples"],
    bins: int = 15,
) -> Float[Array, ""]:
    """Return the calibration error over bins of as many examples each.

    Nguyen and O'Connor 2015, arXiv:1508.05154, Section 3: bins of equal mass tell more
    than `expected_calibration_error`'s of equal width where most predictions are sure.
    Of fewer examples than bins, each has a bin.

    Args:
        logits: class scores.
        labels: class indices.
        bins: of the examples sorted by confidence; their sizes differ by 1 at most.
    """
    check_labels("labels", labels, logits.shape[-1])
    confidence = jax.nn.softmax(as_float(logits)).max(-1)
    gap = confidence - (logits.argmax(-1) == labels)
    examples = len(labels)
    which = jnp.arange(examples) * bins // examples
    gaps = jnp.zeros(bins, gap.dtype).at[which].add(gap[jnp.argsort(confidence)])
    return jnp.abs(gaps).sum() / examples


@checked(bins=count)
def classwise_calibration_error(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, "examples"],
    bins: int = 15,
) -> Float[Array, ""]:
    """Return the calibration error of every class's probability, averaged over classes.

    Kull et al. 2019, arXiv:1910.12656, Section 2: for each class, equal-width bins
    (lower, upper] of its predicted probability, the gap between their mean and the
    class's frequency, each bin weighted by its share of the examples. A class at −∞ in
    every example is none.

    Args:
        logits: class scores.
        labels: class indices.
        bins: equal-width bins of (0, 1].
    """
    p = jax.nn.softmax(as_float(logits))
    classes = p.shape[-1]
    check_labels("labels", labels, classes)
    gap = p - jax.nn.one_hot(labels, classes, dtype=p.dtype)
    which = jnp.clip(jnp.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    column = jnp.arange(classes)
    gaps = jnp.zeros((bins, classes), p.dtype).at[which, column].add(gap)
    present = jnp.maximum((~jnp.isneginf(logits)).any(0).sum(), 1)
    return jnp.abs(gaps).sum() / (len(labels) * present)


@checked()
def agreement(
    logits: Float[Array, "examples classes"], other: Float[Array, "examples classes"]
) -> Float[Array, ""]:
    """Return the share of examples for which both have the same top class.

    Stanton et al. 2021, arXiv:2106.05945, "top-1 agreement".
    """
    return jnp.mean(logits.argmax(-1) == other.argmax(-1))


@checked()
def teacher_kl(
    logits: Float[Array, "examples classes"],
    teacher_logits: Float[Array, "examples classes"],
) -> Float[Array, ""]:
    """Return the mean KL(teacher ‖ student) in nats, at temperature 1."""
    log_p, log_q = (log_softmax(as_float(z)) for z in (teacher_logits, logits))
    return kl_divergence(log_p, log_q).mean()


@jax.jit
def classification_metrics(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, "examples"],
    teacher_logits: Float[Array, "examples classes"] | None = None,
) -> dict[str, Array]:
    """Return all metrics of this module.

    They are ``accuracy``, ``top5`` (of more than 5 classes), ``nll``, ``ece``,
    ``adaptive_ece`` and ``classwise_ece``, and with a teacher ``agreement`` and
    ``teacher_kl``.
    """
    metrics = {
        "accuracy": accuracy(logits, labels),
        "nll": negative_log_likelihood(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "adaptive_ece": adaptive_calibration_error(logits, labels),
        "classwise_ece": classwise_calibration_error(logits, labels),
    }
    if logits.shape[-1] > 5:
        metrics["top5"] = top_k_accuracy(logits, labels, 5)
    if teacher_logits is not None:
        metrics["agreement"] = agreement(logits, teacher_logits)
        metrics["teacher_kl"] = teacher_kl(logits, teacher_logits)
    return metrics


@checked(batch_size=count)
def labelled_inputs(
    network: Network,
    source: Examples,
    batch_size: int,
    transform: Transform | None = None,
) -> Iterator[tuple[Inputs, np.ndarray | None]]:
    """Yield a network's inputs, and labels if there are, for all of a source, in order.

    The last inputs, not their labels, are filled up to the batch size.

    Args:
        network: whose inputs they are.
        source: the examples.
        batch_size: examples in each batch.
        transform: of each batch, without randomness.
    """
    for start in range(0, len(source), batch_size):
        rows = np.arange(start, min(start + batch_size, len(source)))
        batch = source.take(rows)
        inputs = network.read(batch if transform is None else transform(batch, None))
        missing = batch_size - len(rows)

        def fill(x: Any, missing: int = missing) -> np.ndarray:
            return np.pad(x, [(0, missing)] + [(0, 0)] * (np.ndim(x) - 1))

        yield jax.tree.map(fill, inputs), batch.get("label")


@checked(batch_size=count)
def predictor(
    network: Network,
    source: Examples,
    batch_size: int = 1000,
    transform: Transform | None = None,
) -> Callable[[Variables], np.ndarray]:
    """Return ``variables -> logits`` (examples, classes) for all of a source.

    The forward pass is compiled once. A source in memory is put on the device once,
    another is read anew each time.

    Args:
        network: to run in evaluation mode.
        source: the examples.
        batch_size: examples in one forward pass.
        transform: of each batch, without randomness, such as ``Normalize``.
    """
    run = _forward(network, source, batch_size, transform)
    return lambda variables: run(variables)[0]


def _forward(
    network: Network,
    source: Examples,
    batch_size: int,
    transform: Transform | None,
) -> Callable[[Variables], tuple[np.ndarray, list[Any]]]:
    """Return ``variables -> (logits, labels of each batch)``."""
    size = min(batch_size, len(source))
    kept = None
    # Several processes share arrays only through the host.
    if isinstance(source, Source) and jax.process_count() == 1:
        batches = labelled_inputs(network, source, size, transform)
        kept = [(jax.device_put(inputs), label) for inputs, label in batches]

    @functools.cache
    def forward(result: NamedSharding | None) -> Callable[[Variables, Inputs], Any]:
        def logits(variables: Variables, inputs: Inputs) -> Array:
            return network.apply(variables, inputs)[0].logits

        return jax.jit(logits, out_shardings=result)

    def run(variables: Variables) -> tuple[np.ndarray, list[Any]]:
        logits, labels = [], []
        predict = forward(_everywhere(variables))
        for inputs, label in kept or labelled_inputs(network, source, size, transform):
            logits.append(predict(variables, inputs))
            labels.append(label)
            # One batch runs while the next is read: more would pile up in memory.
            if len(logits) > 1:
                logits[-2] = np.asarray(logits[-2])
        return np.concatenate(logits)[: len(source)], labels

    return run


def _everywhere(variables: Variables) -> NamedSharding | None:
    """Return the sharding that copies results to all devices of the variables' mesh."""
    sharding = getattr(jax.tree.leaves(variables)[0], "sharding", None)
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return None


@checked(batch_size=count)
def evaluator(
    network: Network,
    source: Examples,
    teacher_logits: np.ndarray | None = None,
    batch_size: int = 1000,
    transform: Transform | None = None,
) -> Callable[[Any], dict[str, float]]:
    """Return ``variables -> metrics`` of a network on a source.

    Given a program's state, it measures the variables that are `jaxkd.types.deployed`:
    `jaxkd.training.fit` takes it as its ``evaluate`` as it is.

    Args:
        network: the student.
        source: the examples, with ``label``.
        teacher_logits: the teacher's on the same source, for ``agreement`` and
            ``teacher_kl``.
        batch_size: examples in one forward pass.
        transform: of each batch, without randomness, such as ``Normalize``.

    Raises:
        ValueError: the source has no labels, or another number of examples than
            ``teacher_logits`` has rows.
    """
    if teacher_logits is not None and len(teacher_logits) != len(source):
        raise ValueError(
            f"teacher_logits has {len(teacher_logits)} rows but {source.name!r} has "
            f"{len(source)} examples: compute them with predictor() on this source"
        )
    run = _forward(network, source, batch_size, transform)

    def evaluate(state: Any) -> dict[str, float]:
        logits, labels = run(deployed(state))
        if labels[0] is None:
            raise ValueError(f"data set {source.name!r} has no label to evaluate by")
        metrics = classification_metrics(logits, np.concatenate(labels), teacher_logits)
        return {name: float(value) for name, value in metrics.items()}

    return evaluate
