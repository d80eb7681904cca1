"""Balanced divergences, against closed forms and float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from jaxkd.losses.divergences import (
    cross_entropy_loss,
    kd_loss,
    prediction_entropy,
    reverse_kd_loss,
)
from jaxkd.losses.online import balance_weights, bdkd_loss

LABELS = jnp.array([0, 1, 2, 3, 0, 1, 1])


def logits(seed, scale=2.0):
    return jnp.asarray(
        np.random.default_rng(seed).normal(0, scale, (7, 4)), jnp.float32
    )


S, T = logits(0), logits(1, 3.0)


def log_p(z, temperature=1.0):
    return log_softmax(np.asarray(z, np.float64) / temperature, axis=-1)


def kl(p, q, temperature=1.0):
    a, b = log_p(p, temperature), log_p(q, temperature)
    return (np.exp(a) * (a - b)).sum(-1)


def entropy(z, temperature=1.0):
    a = log_p(z, temperature)
    return -(np.exp(a) * a).sum(-1)


def in_numpy(s, t, temperature, delta, weight, invert=False):
    surer = entropy(t, temperature) > entropy(s, temperature)
    forward, reverse = np.where(surer, delta, 1), np.where(surer, 1, delta)
    if invert:
        forward, reverse = reverse, forward
    scale = weight * temperature**2
    rows = np.arange(7), np.asarray(LABELS)
    student = -log_p(s)[rows] + scale * (
        forward * kl(t, s, temperature) + reverse * kl(s, t, temperature)
    )
    return student, -log_p(t)[rows] + scale * kl(s, t, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(
    ("delta", "weight", "invert"),
    [(1.0, 1.0, False), (2.0, 0.5, False), (3.0, 1.0, True)],
)
def test_both_losses_are_their_formula(temperature, delta, weight, invert):
    found = bdkd_loss(S, T, LABELS, temperature, delta, weight, invert=invert)
    expected = in_numpy(S, T, temperature, delta, weight, invert)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_in_float64(x64):
    s, t = (jnp.asarray(z, jnp.float64) for z in (S, T))
    found = bdkd_loss(s, t, LABELS, 2.0, 2.0, 0.7)
    np.testing.assert_allclose(found, in_numpy(s, t, 2.0, 2.0, 0.7), rtol=1e-12)


def test_gradients_are_closed_forms_and_each_network_has_its_own():
    p_s, p_t = np.exp(log_p(S)), np.exp(log_p(T))
    one_hot = np.eye(4)[np.asarray(LABELS)]
    surer = (entropy(T) > entropy(S))[:, None]
    assert 0 < surer.sum() < 7
    reverse = p_s * (log_p(S) - log_p(T) - kl(S, T)[:, None])
    student = (
        (p_s - one_hot)
        + np.where(surer, 2, 1) * (p_s - p_t)
        + np.where(surer, 1, 2) * reverse
    )
    teacher = (p_t - one_hot) + (p_t - p_s)

    def total(s, t, which):
        return bdkd_loss(s, t, LABELS, 1.0, 2.0)[which].sum()

    gradient = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    for which, (own, other) in enumerate([(student, 0 * teacher), (0, teacher)]):
        g_s, g_t = gradient(S, T, which)
        np.testing.assert_allclose(g_s, own + 0 * g_s, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(g_t, other, rtol=1e-4, atol=1e-5)


def test_reverse_is_forward_with_the_roles_swapped():
    np.testing.assert_allclose(
        reverse_kd_loss(S, T, 3.0), kd_loss(T, S, 3.0), rtol=1e-6
    )
    assert (jax.grad(lambda t: reverse_kd_loss(S, t, 3.0).sum())(T) == 0).all()


@given(st.integers(0, 10**6), st.floats(0.5, 8), st.floats(-30, 30))
@settings(max_examples=20, deadline=None)
def test_laws_of_entropy_and_divergences(seed, temperature, shift):
    s, t = logits(seed), logits(seed + 1)
    found = prediction_entropy(s, temperature)
    np.testing.assert_allclose(found, entropy(s, temperature), rtol=1e-4, atol=1e-6)
    assert (found <= np.log(4) + 1e-5).all()
    assert (reverse_kd_loss(s, t, temperature) >= 0).all()
    same = reverse_kd_loss(s + shift, s, temperature)
    np.testing.assert_allclose(same, 0, atol=1e-4)


class TestWeights:
    H_S, H_T = jnp.array([0.2, 0.9, 0.5]), jnp.array([0.8, 0.1, 0.5])

    def test_a_surer_student_is_softened_and_any_other_sharpened(self):
        forward, reverse = balance_weights(self.H_S, self.H_T, 3.0)
        assert forward.tolist() == [3, 1, 1]
        assert reverse.tolist() == [1, 3, 3]

    def test_inverted_they_are_swapped(self):
        forward, reverse = balance_weights(self.H_S, self.H_T, 3.0, invert=True)
        assert forward.tolist() == [1, 3, 3]
        assert reverse.tolist() == [3, 1, 1]

    def test_softly_they_share_delta_and_turn_hard(self):
        forward, reverse = balance_weights(self.H_S, self.H_T, 2.0, softness=0.5)
        share = 1 / (1 + np.exp(-(np.asarray(self.H_T - self.H_S)) / 0.5))
        np.testing.assert_allclose(forward, 1 + share, rtol=1e-5)
        np.testing.assert_allclose(forward + reverse, 3, rtol=1e-6)
        hard = balance_weights(self.H_S, self.H_T, 2.0)
        nearly = balance_weights(self.H_S, self.H_T, 2.0, softness=1e-4)
        np.testing.assert_allclose(nearly[0][:2], hard[0][:2], rtol=1e-6)

    def test_delta_1_weighs_alike_and_nothing_is_differentiated(self):
        for weights in balance_weights(self.H_S, self.H_T, 1.0, softness=0.3):
            np.testing.assert_array_equal(weights, 1)
        gradient = jax.grad(
            lambda h: balance_weights(h, self.H_T, 2.0, softness=0.3)[0].sum()
        )(self.H_S)
        np.testing.assert_array_equal(gradient, 0)


def test_identical_networks_have_only_cross_entropy():
    found = bdkd_loss(S, S, LABELS, 2.0, 2.0)
    for loss in found:
        np.testing.assert_allclose(loss, cross_entropy_loss(S, LABELS), rtol=1e-6)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bdkd_loss(S, T[:, :3], LABELS), "same classes"),
        (lambda: bdkd_loss(S, T, LABELS, 0), "temperature must be above 0, got 0"),
        (lambda: bdkd_loss(S, T, LABELS, delta=0.5), "delta must be at least 1"),
        (lambda: bdkd_loss(S, T, LABELS, softness=-1), "got 2.0 and -1"),
        (lambda: reverse_kd_loss(S, T, -1), "temperature must be above 0, got -1"),
        (lambda: reverse_kd_loss(S, T[:3]), r"teacher_logits has shape \(3, 4\)"),
        (lambda: prediction_entropy(S, 0), "temperature must be above 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
