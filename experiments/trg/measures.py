"""How a student's tokens relate, and whether they can be told by the teacher's."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array

from jaxkd.data import Examples, Transform
from jaxkd.evaluation.classification import labelled_inputs
from jaxkd.losses import (
    gather_tokens,
    info_nce_loss,
    matched_tokens,
    sample_token_indices,
    trg_contextual_loss,
)
from jaxkd.network import Network
from jaxkd.types import Variables

IMAGES, SAMPLES, DIM, TEMPERATURE = 32, 4, 32, 0.1
"""Of the probe: images of a batch, tokens of each, its width, and its temperature."""

Pair = tuple[Array, Array]
"""The student's features and the teacher's, of the same images."""


def tapped(
    network: Network,
    tap: str,
    source: Examples,
    examples: int,
    transform: Transform | None = None,
) -> Callable[[Variables], Array]:
    """Return ``variables -> features`` of the first examples of a source."""
    count = min(len(source), examples)
    inputs, _ = next(labelled_inputs(network, source, count, transform))
    inputs = jax.device_put(inputs)

    @jax.jit
    def run(variables: Variables) -> Array:
        return network.apply(variables, inputs, taps=(tap,))[0].features[tap]

    return run


def contextual_mismatch(features: Pair, normalize: bool) -> float:
    """Return the mean contextual loss of some images' features."""

    @jax.jit
    def mean(features: Pair) -> Array:
        student, teacher = matched_tokens(*features)
        return trg_contextual_loss(student, teacher, normalize).mean()

    return float(mean(features))


def probe_loss(train: Pair, test: Pair, steps: int) -> float:
    """Return the global loss on test images, of projections trained for it alone.

    Both networks stay as they are; the projections of all students are trained on the
    training images by as many steps from the same key.
    """
    return float(_probe(train, test, steps))


@jax.jit(static_argnums=2)
def _probe(train: Pair, test: Pair, steps: int) -> Array:
    train, test = (matched_tokens(*pair) for pair in (train, test))
    images, tokens = train[0].shape[:2]
    keys = jax.random.split(jax.random.key(0), 4)
    params = [
        jax.random.normal(key, (x.shape[-1], DIM)) / x.shape[-1] ** 0.5
        for key, x in zip(keys, train, strict=False)
    ]
    optimizer = optax.adam(3e-3)

    def loss(params: list[Array], pair: Any, key: Array) -> Array:
        indices = sample_token_indices(key, len(pair[0]), tokens, SAMPLES)
        nodes = [
            gather_tokens(x, indices) @ p for x, p in zip(pair, params, strict=True)
        ]
        return info_nce_loss(nodes[0], nodes[1], TEMPERATURE).mean()

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        params, state = carry
        chosen = jax.random.choice(key, images, (IMAGES,), replace=False)
        batch = [x[chosen] for x in train]
        gradient = jax.grad(loss)(params, batch, jax.random.fold_in(key, 1))
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    (params, _), _ = jax.lax.scan(step, start, jax.random.split(keys[2], steps))
    whole = len(test[0]) // IMAGES
    batches = [x[: whole * IMAGES].reshape(whole, IMAGES, *x.shape[1:]) for x in test]
    losses = jax.vmap(loss, (None, 0, 0))(
        params, batches, jax.random.split(keys[3], whole)
    )
    return losses.mean()
