"""SinKD: the authors' numbers and what transport across a batch means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.kernels.linear_distill import soft_cross_entropy
from jaxkd.losses.language import divergence_loss
from jaxkd.losses.sinkd import sinkd_loss


@pytest.mark.slow
@pytest.mark.parametrize("case", ["a", "b", "c", "d_f32"])
def test_authors_numbers(load_golden, case, request):
    if case != "d_f32":
        request.getfixturevalue("x64")
    rtol = 2e-5 if case == "d_f32" else 1e-8
    get = {
        k.split("/", 1)[1]: jnp.asarray(v)
        for k, v in load_golden("41-sinkd").items()
        if k.startswith(case + "/")
    }
    s, t = get["student_logits"], get["teacher_logits"]
    value, gradient = jax.value_and_grad(lambda s: 1e-3 * sinkd_loss(s, t))(s)
    np.testing.assert_allclose(value, get["forward_loss"], rtol=rtol)
    np.testing.assert_allclose(
        gradient, get["forward_grad"], rtol=rtol, atol=rtol * 1e-4
    )
    if "kd_loss" in get:
        temperature = float(get["kd_T"])
        value, gradient = jax.value_and_grad(
            lambda s: (
                divergence_loss(s, t, soft_cross_entropy, temperature).mean()
                / temperature**2
            )
        )(s)
        np.testing.assert_allclose(value, get["kd_loss"], rtol=rtol)
        np.testing.assert_allclose(gradient, get["kd_grad"], rtol=rtol, atol=1e-9)


def logits(seed, shape=(6, 5)):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, shape), jnp.float32)


def test_the_plan_does_the_pairing():
    s, t = logits(0), logits(1)
    np.testing.assert_allclose(sinkd_loss(s[::-1], t), sinkd_loss(s, t), rtol=1e-5)


@pytest.mark.slow
def test_masked_examples_take_no_part():
    s, t = logits(0), logits(1)
    weights = jnp.array([1, 1, 0, 1, 1, 0])
    kept = np.flatnonzero(weights)
    noisy = s.at[2].set(jnp.nan)
    value, gradient = jax.value_and_grad(lambda s: sinkd_loss(s, t, weights=weights))(
        noisy
    )
    np.testing.assert_allclose(value, sinkd_loss(s[kept], t[kept]), rtol=1e-5)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[2], 0)
    none = jax.value_and_grad(lambda s: sinkd_loss(s, t, weights=jnp.zeros(6)))(s)
    for found in none:
        np.testing.assert_array_equal(found, 0)


def test_one_example_is_its_distance():
    s, t = logits(0, (1, 5)), logits(1, (1, 5))
    gap = jnp.abs(jax.nn.softmax(s / 2) - jax.nn.softmax(t / 2)).sum()
    np.testing.assert_allclose(sinkd_loss(s, t), gap, rtol=1e-5)


def test_batches_of_their_own():
    s, t = logits(0, (3, 4, 5)), logits(1, (3, 4, 5))
    alone = [sinkd_loss(a, b) for a, b in zip(s, t, strict=True)]
    np.testing.assert_allclose(jax.jit(sinkd_loss)(s, t), alone, rtol=1e-5)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        sinkd_loss(logits(0), logits(1), 0.0)
