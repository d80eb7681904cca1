"""Vision-language teachers that learn from few labels: CLAP's and Tip-Adapter's."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked
from jaxkd.arguments import count as at_least_one
from jaxkd.losses.basics import as_float, check_class_indices, l2_normalize
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.losses.few_shot import (
    clap_class_weights,
    clap_loss,
    cosine_logits,
    tip_adapter_logits,
)


@checked(passes=at_least_one, batch_size=at_least_one)
@functools.partial(
    jax.jit, static_argnames=("scale", "passes", "batch_size", "learning_rate")
)
def fit_clap(
    key: PRNGKeyArray,
    features: Float[Array, "examples features"],
    labels: Int[Array, "examples"],
    zero_shot_prototypes: Float[Array, "features classes"],
    *,
    scale: float = 100.0,
    passes: int = 300,
    batch_size: int = 64,
    learning_rate: float = 0.01,
) -> Float[Array, "features classes"]:
    """Return the prototypes of a class-adaptive linear probe, `losses.clap_loss`.

    ActiveKD's few-shot teacher (Kang et al. 2025, arXiv:2506.00910): SGD with momentum
    0.9 from the zero-shot prototypes; the rate rises over the first tenth of the steps
    and falls to 0. `losses.cosine_logits` of the result are the teacher's logits.

    Args:
        key: of the batches' order.
        features: embeddings of the labelled images.
        labels: their classes.
        zero_shot_prototypes: a column for each class, as they are, not normalised.
        scale: of the cosines.
        passes: over the labelled examples, each in a new order.
        batch_size: all examples at most; a rest is left out of its pass.
        learning_rate: at its highest.

    Raises:
        ValueError: no examples, or shapes that do not fit.
    """
    steps = passes * _batches_a_pass(labels, batch_size)
    trust = clap_class_weights(
        cosine_logits(features, zero_shot_prototypes, scale), labels
    )
    warmup = max(steps // 10, 1)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, warmup),
            optax.linear_schedule(learning_rate, 0.0, max(steps - warmup, 1)),
        ],
        [warmup],
    )

    def loss(prototypes: Array, rows: Array) -> Array:
        return clap_loss(
            prototypes,
            zero_shot_prototypes,
            features[rows],
            labels[rows],
            trust,
            scale,
        )[0]

    optimizer = optax.sgd(rate, momentum=0.9)
    start = jnp.asarray(zero_shot_prototypes)
    return _trained(key, loss, start, optimizer, len(labels), passes, batch_size)


@checked()
@functools.partial(
    jax.jit,
    static_argnames=(
        *("alpha", "beta", "scale", "passes", "batch_size", "learning_rate"),
    ),
)
def fit_tip_adapter(
    key: PRNGKeyArray,
    features: Float[Array, "examples features"],
    labels: Int[Array, "examples"],
    prototypes: Float[Array, "features classes"],
    *,
    alpha: float = 1.0,
    beta: float = 5.5,
    scale: float = 100.0,
    passes: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
) -> tuple[Float[Array, "examples features"], Float[Array, "examples classes"]]:
    """Return the cache of Tip-Adapter-F: trained keys, and values.

    Zhang et al. 2022, arXiv:2207.09519, the few-shot teacher of Kang et al. 2025,
    arXiv:2505.07675: the keys start as the labelled images' embeddings, and
    cross-entropy trains them by AdamW with a cosine to 0. With the result
    `losses.tip_adapter_logits` are the teacher's logits; α and β may be chosen anew on
    validation data.

    Args:
        key: of the batches' order.
        features: embeddings of the labelled images.
        labels: their classes.
        prototypes: a column for each class, from texts; not trained.
        alpha: of `losses.tip_adapter_logits`.
        beta: likewise.
        scale: likewise.
        passes: over the labelled examples, each in a new order.
        batch_size: all examples at most; a rest is left out of its pass.
        learning_rate: at its highest.

    Raises:
        ValueError: no examples, labels that are no class indices, or shapes that do not
            fit.
    """
    check_class_indices(labels)
    steps = passes * _batches_a_pass(labels, batch_size)
    values = jax.nn.one_hot(labels, jnp.shape(prototypes)[-1])

    def loss(keys: Array, rows: Array) -> Array:
        logits = tip_adapter_logits(
            features[rows], prototypes, keys, values, alpha, beta, scale
        )
        return cross_entropy_loss(logits, labels[rows]).mean()

    rate = optax.cosine_decay_schedule(learning_rate, steps)
    optimizer = optax.adamw(rate, eps=1e-4, weight_decay=0.01)
    start = l2_normalize(as_float(features))
    keys = _trained(key, loss, start, optimizer, len(labels), passes, batch_size)
    return keys, values


def _batches_a_pass(labels: Array, batch_size: int) -> int:
    """Return the whole batches of a pass; there is at least one.

    Raises:
        ValueError: no examples.
    """
    if len(labels) == 0:
        raise ValueError("labels is empty: a few-shot teacher needs labelled examples")
    return len(labels) // min(batch_size, len(labels))


def _trained(
    key: PRNGKeyArray,
    loss: Callable[[Array, Array], Array],
    start: Array,
    optimizer: optax.GradientTransformation,
    count: int,
    passes: int,
    batch_size: int,
) -> Array:
    """Return an array after some passes over examples, each in a new order.

    Args:
        key: of the orders.
        loss: ``(array, positions of a batch's examples) -> scalar``.
        start: the array.
        optimizer: of the array.
        count: of examples.
        passes: over them.
        batch_size: all examples at most.
    """
    size = min(batch_size, count)
    gradient = jax.grad(loss)

    def one_pass(carry, key):
        order = jax.random.permutation(key, count)[: count // size * size]

        def step(carry, rows):
            array, state = carry
            updates, state = optimizer.update(gradient(array, rows), state, array)
            moved: Any = optax.apply_updates(array, updates)
            return (moved, state), None

        return jax.lax.scan(step, carry, order.reshape(-1, size))

    carry, _ = jax.lax.scan(
        one_pass, (start, optimizer.init(start)), jax.random.split(key, passes)
    )
    return carry[0]
