"""How well a language model predicts the next token.

Given a program's state, the evaluators measure the variables that are
`jaxkd.types.deployed`: `jaxkd.training.fit` takes one as its ``evaluate`` as it is.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd.arguments import checked, count
from jaxkd.data.sources import Examples
from jaxkd.losses.basics import expand_weights
from jaxkd.losses.divergences import cross_entropy_loss, kl_divergence, tempered
from jaxkd.methods.base import batch_weights
from jaxkd.network import Network
from jaxkd.types import Batch, Variables, deployed


@checked(batch_size=count)
def token_evaluator(
    network: Network, test: Examples, batch_size: int = 64
) -> Callable[[Any], dict[str, float]]:
    """Return ``variables -> metrics``: ``nll``, in nats a token, and ``perplexity``.

    Tokens that ``mask`` or ``weight`` leaves out do not count.

    Args:
        network: whose logits are (batch, length, vocabulary).
        test: examples with ``input_ids`` and ``label``, such as `data.Windows`.
        batch_size: of the forward passes.

    Raises:
        ValueError: from the function returned, no token counts.
    """
    return _evaluator(_token_sums(network), test, batch_size)


@checked(batch_size=count)
def fidelity_evaluator(
    network: Network,
    teacher: Network,
    teacher_variables: Variables,
    test: Examples,
    batch_size: int = 64,
) -> Callable[[Any], dict[str, float]]:
    """Return ``variables -> metrics`` of how closely a student follows its teacher.

    Means over tokens: ``teacher_kl``, KL(teacher ‖ student) in nats,
    ``reverse_teacher_kl``, KL(student ‖ teacher), and ``agreement``, the share whose
    most likely next token is the teacher's.

    Args:
        network: the student, whose logits are (batch, length, vocabulary).
        teacher: of the same vocabulary.
        teacher_variables: the teacher's.
        test: examples, such as `data.Windows`.
        batch_size: of the forward passes.

    Raises:
        ValueError: from the function returned, no token counts.
    """

    @jax.jit
    def summed(variables: Variables, batch: Batch, real: Array):
        z_s = network.apply(variables, network.read(batch, "student"))[0].logits
        inputs = teacher.read(batch, "teacher")
        z_t = teacher.apply(teacher_variables, inputs)[0].logits
        log_s, log_t = tempered(z_s, z_t, 1.0)
        values = {
            "teacher_kl": kl_divergence(log_t, log_s),
            "reverse_teacher_kl": kl_divergence(log_s, log_t),
            "agreement": 1.0 * (log_s.argmax(-1) == log_t.argmax(-1)),
        }
        return _masked_sums(values, batch, real)

    return _evaluator(summed, test, batch_size)


@checked(batch_size=count)
def domain_evaluator(
    network: Network, domains: Mapping[str, Examples], batch_size: int = 64
) -> Callable[[Any], dict[str, float]]:
    """Return ``variables -> metrics``: the ``perplexity/…`` of every domain.

    Args:
        network: as of `token_evaluator`.
        domains: examples of each, by name.
        batch_size: of the forward passes.

    Raises:
        ValueError: from the function returned, a domain has no token that counts.
    """
    summed = _token_sums(network)
    evaluators = {
        name: _evaluator(summed, test, batch_size) for name, test in domains.items()
    }

    def evaluate(state: Any) -> dict[str, float]:
        return {
            f"perplexity/{name}": measure(state)["perplexity"]
            for name, measure in evaluators.items()
        }

    return evaluate


def _token_sums(network: Network) -> Callable[..., Any]:
    @jax.jit
    def summed(variables: Variables, batch: Batch, real: Array):
        outputs, _ = network.apply(variables, network.read(batch))
        losses = cross_entropy_loss(outputs.logits, batch["label"])
        return _masked_sums({"nll": losses}, batch, real)

    return summed


def _masked_sums(
    values: Mapping[str, Array], batch: Batch, real: Array
) -> tuple[dict[str, Array], Array]:
    """Return the sum of each kind of value over the tokens that count, and how many."""
    shape = next(iter(values.values())).shape
    weights = batch_weights(batch, shape)
    weights = jnp.ones(shape) if weights is None else weights
    weights = expand_weights(real, shape) * weights
    sums = {
        name: jnp.sum(jnp.where(weights > 0, value * weights, 0))
        for name, value in values.items()
    }
    return sums, weights.sum()


def _evaluator(
    summed: Callable[..., Any], test: Examples, batch_size: int
) -> Callable[[Any], dict[str, float]]:
    size = min(batch_size, len(test))

    def evaluate(state: Any) -> dict[str, float]:
        variables = deployed(state)
        total: Counter[str] = Counter()
        count = 0.0
        for start in range(0, len(test), size):
            rows = np.arange(start, start + size)
            # The last batch is filled up, so that all are of one shape.
            batch = test.take(np.minimum(rows, len(test) - 1))
            sums, weight = summed(variables, batch, rows < len(test))
            total.update({name: float(value) for name, value in sums.items()})
            count += float(weight)
        if not count:
            raise ValueError(f"data set {test.name!r} has no token that is not masked")
        means = {name: value / count for name, value in total.items()}
        if "nll" in means:
            means["perplexity"] = math.exp(means["nll"])
        return means

    return evaluate
