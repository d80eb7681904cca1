"""The method on a teacher's best tokens: a cache and a live teacher are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import call

from jaxkd import Network, Outputs, distill, methods
from jaxkd.losses.topk import top_k_log_probs
from jaxkd.methods import topk_kd

VOCABULARY = 7
RNG = np.random.default_rng(0)


def network(seed):
    """Return logits looked up by the token, so that students differ from the start."""
    return Network.from_apply(
        lambda key: {"w": jax.random.normal(jax.random.key(seed), (VOCABULARY,) * 2)},
        lambda params, ids: params["w"][ids],
        reads=("input_ids",),
    )


BATCH = {
    "input_ids": jnp.asarray(RNG.integers(0, VOCABULARY, (2, 5))),
    "mask": jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
}


def cached(k):
    ids, variables = BATCH["input_ids"], network(1).init(jax.random.key(0))
    logits = network(1).apply(variables, ids)[0].logits
    ids, log_probs = top_k_log_probs(logits, k)
    return {**BATCH, "teacher_ids": ids, "teacher_log_probs": log_probs}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"rest": False}])
def test_training_from_a_cache_is_training_with_the_teacher(options):
    states = []
    for teacher, batch in ((network(1), BATCH), (None, cached(3))):
        program = distill(network(0), teacher, topk_kd(3, **options), optax.adam(0.1))
        state = program.init(jax.random.key(0), batch)
        step = jax.jit(program.step)
        for _ in range(3):
            state, metrics = step(state, batch)
        states.append((state.student, metrics))
    assert states[0][1].keys() == states[1][1].keys()
    assert states[0][1]["topk_kd"] > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *states
    )


def run(method, teacher, batch):
    student = Outputs(jnp.asarray(RNG.normal(size=(2, 5, VOCABULARY)), jnp.float32))
    return call(method, {"params": {}, "state": {}}, student, teacher, batch)[0]


def test_k_takes_the_best_of_a_larger_cache():
    student = RNG.bit_generator.state
    first = run(topk_kd(2), Outputs(None), cached(4))
    RNG.bit_generator.state = student
    assert first == run(topk_kd(), Outputs(None), cached(2))


@pytest.mark.parametrize(
    ("method", "teacher", "batch", "message"),
    [
        (topk_kd(3), Outputs(None), BATCH, "no teacher_ids and teacher_log_probs"),
        (topk_kd(5), Outputs(None), cached(3), "k is 5, but the batch holds .* 3 best"),
        (topk_kd(), Outputs(jnp.zeros((2, 5, VOCABULARY))), BATCH, "k is None"),
    ],
)
def test_bad_targets_are_named(method, teacher, batch, message):
    with pytest.raises(ValueError, match=message):
        run(method, teacher, batch)


def test_bad_k_is_named():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        methods.topk_kd(0)
