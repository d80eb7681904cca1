"""Losses on compared answers against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses.preferences import dpo_loss, rrhf_loss


def test_dpo_at_the_reference_and_its_gradient():
    x = jnp.array([-3.0, -8.0])
    np.testing.assert_allclose(dpo_loss(x, x - 1, x, x - 1), np.log(2), rtol=1e-6)
    gradient = jax.grad(lambda c: dpo_loss(c, x - 1, x, x - 1, 0.2).sum())(x)
    np.testing.assert_allclose(gradient, -0.1, rtol=1e-6)


def test_dpo_reads_ratios_not_probabilities():
    chosen, rejected = jnp.array([-1e4]), jnp.array([-1.0])
    found = dpo_loss(chosen, rejected, chosen - 2, rejected, beta=0.5)
    np.testing.assert_allclose(found, np.log1p(np.exp(-1.0)), rtol=1e-5)


def test_rrhf_sums_the_wrong_pairs():
    scores = jnp.array([[-1.0, -2.0, -0.5]])
    rewards = jnp.array([[0.3, 0.9, 0.1]])
    # Worse and scored higher: 0 over 1 by 1, 2 over 1 by 1.5, 2 over 0 by 0.5.
    np.testing.assert_allclose(rrhf_loss(scores, rewards), 3.0, rtol=1e-6)
    np.testing.assert_array_equal(rrhf_loss(scores, scores), 0)


def test_rrhf_needs_two_answers():
    with pytest.raises(ValueError, match="two or more"):
        rrhf_loss(jnp.zeros((2, 1)), jnp.zeros((2, 1)))


def test_beta_must_be_positive():
    x = jnp.zeros(2)
    with pytest.raises(ValueError, match="beta must be above 0"):
        dpo_loss(x, x, x, x, 0.0)
