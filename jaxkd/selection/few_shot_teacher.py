"""A vision-language teacher that learns from few labels: CLAP's training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked
from jaxkd.arguments import count as at_least_one
from jaxkd.losses.few_shot import clap_class_weights, clap_loss, cosine_logits


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
    count = len(labels)
    if count == 0:
        raise ValueError("labels is empty: a few-shot teacher needs labelled examples")
    batch_size = min(batch_size, count)
    per_pass = count // batch_size
    steps = passes * per_pass
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
    optimizer = optax.sgd(rate, momentum=0.9)
    gradient = jax.grad(clap_loss, has_aux=True)

    def one_pass(carry, key):
        order = jax.random.permutation(key, count)[: per_pass * batch_size]

        def step(carry, rows):
            prototypes, state = carry
            found, _ = gradient(
                prototypes,
                zero_shot_prototypes,
                features[rows],
                labels[rows],
                trust,
                scale,
            )
            updates, state = optimizer.update(found, state)
            moved: Any = optax.apply_updates(prototypes, updates)
            return (moved, state), None

        return jax.lax.scan(step, carry, order.reshape(per_pass, batch_size))

    start = jnp.asarray(zero_shot_prototypes)
    carry, _ = jax.lax.scan(
        one_pass, (start, optimizer.init(start)), jax.random.split(key, passes)
    )
    return carry[0]
