"""MiniLLM's losses: the authors' numbers and the laws of a policy gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses.basics import weighted_mean
from jaxkd.losses.policy import (
    length_normalized_returns,
    policy_gradient_loss,
    reverse_kl_k3,
    reverse_kl_rewards,
    whiten,
)


@pytest.fixture(scope="module", params=["minillm_a", "minillm_b"])
def case(request, load_golden):
    found = load_golden("24-llm_kd_survey")
    prefix = request.param + "/"
    return {
        k[len(prefix) :]: jnp.asarray(v)
        for k, v in found.items()
        if k.startswith(prefix)
    }


def test_authors_returns(case):
    found = length_normalized_returns(
        case["rewards"], case["mask"], float(case["gamma"])
    )
    np.testing.assert_allclose(found, case["advantage_raw"], rtol=1e-5, atol=1e-6)
    # The authors' statistics are over all entries.
    np.testing.assert_allclose(
        whiten(case["advantage_raw"]), case["advantage_whitened"], rtol=1e-5, atol=1e-6
    )


def test_authors_policy_gradient(case):
    def loss(log_q):
        losses = policy_gradient_loss(
            jnp.where(case["mask"] > 0, log_q, case["old_logprobs"]),
            case["old_logprobs"],
            case["advantage_whitened"],
            case["importance_w"],
            float(case["cliprange"]),
        )
        return weighted_mean(losses, case["mask"])

    value, gradient = jax.value_and_grad(loss)(case["logprobs"])
    np.testing.assert_allclose(value, case["pg_loss"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, case["pg_grad_logprobs"], rtol=1e-4, atol=1e-7)


def test_authors_k3_estimate_of_the_reverse_kl(case):
    # Their mask multiplies the gap, of which 0 gives 0.
    found = reverse_kl_k3(case["old_logprobs"], case["logprobs"])
    found = jnp.where(case["mask"] > 0, found, 0)
    np.testing.assert_allclose(found, case["rev_kl_k3"], rtol=1e-5, atol=1e-6)
    log_q, log_p = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    mean = jnp.sum(jnp.exp(log_q) * reverse_kl_k3(log_p[None], log_q[None])[0])
    exact = jnp.sum(jnp.exp(log_q) * (log_q - log_p))
    np.testing.assert_allclose(mean, exact, rtol=1e-5)


def test_returns_against_a_loop():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(2, 5)).astype("f4")
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = np.zeros((2, 5))
    for row in range(2):
        length = mask[row].sum()
        for t in range(length):
            terms = [0.9 ** (k - t) * rewards[row, k] for k in range(t, length)]
            expected[row, t] = sum(terms) / (length - t)
    spoilt, mask = jnp.asarray(np.where(mask, rewards, np.nan)), jnp.asarray(mask)
    found = length_normalized_returns(spoilt, mask, 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Two answers one after the other earn nothing from each other.
    row, numbers = spoilt.reshape(1, -1), jnp.repeat(jnp.arange(2), 5)[None]
    found = length_normalized_returns(row, mask.reshape(1, -1), 0.9, numbers)
    np.testing.assert_allclose(found.reshape(2, 5), expected, rtol=1e-5)


def test_whitened_tokens_ignore_masked_ones():
    values = jnp.array([[1.0, 2.0, 100.0], [4.0, 5.0, jnp.nan]])
    mask = jnp.array([[1, 1, 0], [1, 1, 0]])
    found = whiten(values, mask)
    counted = np.array([1.0, 2.0, 4.0, 5.0])
    expected = (counted - counted.mean()) / counted.std(ddof=1)
    np.testing.assert_allclose(found[:, :2].ravel(), expected, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 2], 0)


def test_first_step_is_the_plain_policy_gradient():
    log_q = jnp.log(jnp.array([[0.2, 0.5]]))
    advantages = jnp.array([[1.5, -0.5]])
    gradient = jax.grad(lambda x: policy_gradient_loss(x, log_q, advantages).sum())(
        log_q
    )
    np.testing.assert_allclose(gradient, -advantages, rtol=1e-6)


def test_clipped_tokens_pull_no_further():
    old = jnp.zeros((1, 2))
    new = jnp.log(jnp.array([[2.0, 0.5]]))
    advantages = jnp.array([[1.0, -1.0]])
    gradient = jax.grad(lambda x: policy_gradient_loss(x, old, advantages).sum())(new)
    np.testing.assert_array_equal(gradient, 0)


def test_rewards_have_no_gradient_and_are_clipped():
    log_p, log_q = jnp.array([[0.0, -9.0]]), jnp.array([[-3.0, -1.0]])
    np.testing.assert_array_equal(reverse_kl_rewards(log_p, log_q, 2.0), [[2.0, -2.0]])
    gradient = jax.grad(lambda q: reverse_kl_rewards(log_p, q).sum())(log_q)
    np.testing.assert_array_equal(gradient, 0)


def test_one_counted_token_whitens_to_zero_and_no_token_to_zero():
    values = jnp.array([[3.0, 1.0]])
    for mask in (jnp.array([[1, 0]]), jnp.zeros((1, 2))):
        np.testing.assert_array_equal(whiten(values, mask), 0)


def test_discount_outside_its_range():
    with pytest.raises(ValueError, match="discount must be in"):
        length_normalized_returns(jnp.zeros((1, 2)), jnp.ones((1, 2)), 1.5)
