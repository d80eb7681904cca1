"""TAID: the authors' numbers, the schedule's laws and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.losses.basics import weighted_mean
from jaxkd.losses.divergences import kd_loss
from jaxkd.losses.taid import taid_init, taid_loss, taid_target, taid_update


@pytest.fixture(scope="module")
def numbers(load_golden):
    return load_golden("31-taid")


def part(numbers, prefix):
    return {k[len(prefix) :]: v for k, v in numbers.items() if k.startswith(prefix)}


@pytest.mark.parametrize("name", ["loss_a/", "loss_b/"])
def test_authors_loss(numbers, name):
    get = part(numbers, name)
    z_t, mask = jnp.asarray(get["teacher_logits"]), jnp.asarray(get["mask"])

    @jax.jit
    @jax.value_and_grad
    def loss(z_s, t):
        return weighted_mean(taid_loss(z_s, z_t, t), mask)

    for i, t in enumerate(get["t"]):
        value, gradient = loss(jnp.asarray(get["student_logits"]), t)
        np.testing.assert_allclose(value, get["loss"][i], rtol=1e-5)
        np.testing.assert_allclose(
            gradient, get["grad_student"][i], rtol=1e-4, atol=1e-6
        )


def hyper(get):
    names = ("t_start", "t_end", "alpha", "beta")
    found = {name: float(get[name]) for name in names}
    return found | ({"alpha": 0.0} if get.get("disable_adaptive") else {})


@pytest.mark.parametrize("name", ["sched_a/", "sched_b/", "sched_c/"])
def test_authors_schedule(numbers, name):
    get = part(numbers, name)
    state = taid_init(float(get["t_start"]))
    update = jax.jit(lambda s, loss, n: taid_update(s, loss, n, **hyper(get)))
    for i, loss in enumerate(get["losses"]):
        state = update(state, loss, i / int(get["num_train_steps"]))
        np.testing.assert_allclose(state.t, get["t_after"][i], rtol=1e-5)
        if not get.get("disable_adaptive"):
            np.testing.assert_allclose(
                state.momentum, get["momentum_after"][i], rtol=1e-5, atol=1e-6
            )


def test_authors_run(numbers):
    get = part(numbers, "run_a/")
    z_t, mask = jnp.asarray(get["teacher_logits"]), jnp.asarray(get["mask"])
    z, state = jnp.asarray(get["student_logits0"]), taid_init(float(get["t_start"]))
    loss = jax.jit(
        jax.value_and_grad(lambda z, t: weighted_mean(taid_loss(z, z_t, t), mask))
    )
    for i in range(10):
        value, gradient = loss(z, state.t)
        np.testing.assert_allclose(value, get["loss_per_step"][i], rtol=1e-5)
        progress = i / int(get["num_train_steps"])
        state = taid_update(state, value, progress, **hyper(get))
        np.testing.assert_allclose(state.t, get["t_after_step"][i], rtol=1e-5)
        z = z - float(get["sgd_lr"]) * gradient
    np.testing.assert_allclose(z, get["student_logits_final"], rtol=1e-4, atol=1e-5)


def logits(seed, shape=(4, 6)):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, shape), jnp.float32)


def test_ends_of_the_way():
    s, t = logits(0), logits(1)
    start = jax.grad(lambda s: taid_loss(s, t, 0.0).sum())(s)
    np.testing.assert_allclose(start, 0, atol=1e-6)
    end = jax.grad(lambda s: taid_loss(s, t, 1.0).sum())(s)
    kd = jax.grad(lambda s: kd_loss(s, t, 1.0).sum())(s)
    np.testing.assert_allclose(end, kd, rtol=1e-5, atol=1e-6)


def test_the_target_is_a_geometric_mean_not_a_mixture():
    s, t = logits(0), logits(1)
    p, q = jax.nn.softmax(t), jax.nn.softmax(s)
    product = p**0.3 * q**0.7
    np.testing.assert_allclose(
        taid_target(s, t, 0.3), product / product.sum(-1, keepdims=True), rtol=1e-5
    )


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_padded_vocabulary_counts_nothing(t):
    s, teacher = logits(0), logits(1)
    padded = [
        jnp.pad(x, ((0, 0), (0, 2)), constant_values=-jnp.inf) for x in (s, teacher)
    ]
    value, gradient = jax.value_and_grad(lambda s: taid_loss(s, padded[1], t).sum())(
        padded[0]
    )
    np.testing.assert_allclose(value, taid_loss(s, teacher, t).sum(), rtol=1e-6)
    assert np.isfinite(gradient).all()


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=12), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_t_rises_at_least_linearly_and_ends_at_1(losses, t_start):
    state, seen = taid_init(t_start), [t_start]
    for i, loss in enumerate(losses):
        progress = (i + 1) / len(losses)
        state = taid_update(
            state, jnp.float32(loss), progress, t_start=t_start, alpha=0.1
        )
        if i:
            assert state.t >= t_start + (1 - t_start) * progress - 1e-6
        seen.append(float(state.t))
    assert (np.diff(seen) >= -1e-6).all()
    assert seen[-1] == pytest.approx(1)


def test_bad_numbers():
    with pytest.raises(ValueError, match="t_start must be in"):
        taid_init(1.0)
    with pytest.raises(ValueError, match="t_start <= t_end <= 1"):
        taid_update(taid_init(0.5), jnp.ones(()), 0.1, t_start=0.5, t_end=0.4)
