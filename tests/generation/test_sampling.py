"""Truncation of a distribution against its definitions, and draws against it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.generation import (
    GREEDY,
    Sampling,
    keep_top_k,
    keep_top_p,
    sample,
    sampling_log_prob,
    sampling_logits,
)

rows = st.lists(st.integers(-8, 8), min_size=1, max_size=6)


def kept(logits):
    return np.isfinite(np.asarray(logits))


@given(rows, st.integers(1, 8))
def test_top_k_keeps_those_that_fewer_than_k_exceed(values, k):
    logits = jnp.asarray(values, jnp.float32) / 2
    found = keep_top_k(logits, k)
    expected = [sum(other > own for other in values) < k for own in values]
    assert kept(found).tolist() == expected
    np.testing.assert_array_equal(found[kept(found)], logits[kept(found)])


@given(rows, st.sampled_from([0.1, 0.35, 0.61, 0.9, 1.0]))
def test_top_p_keeps_the_smallest_set_of_that_mass(values, p):
    values = [v / 4 for v in values]
    found = kept(keep_top_p(jnp.asarray(values, jnp.float32), p))
    mass = np.exp(values) / np.exp(values).sum()
    if p == 1:
        assert found.all()
        return
    smallest = min(
        len(some)
        for n in range(1, len(values) + 1)
        for some in itertools.combinations(range(len(values)), n)
        if mass[list(some)].sum() >= p
    )
    least = sorted(values, reverse=True)[smallest - 1]
    assert found.tolist() == [value >= least for value in values]


def test_the_order_is_temperature_then_top_k_then_top_p():
    logits = jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))
    # Squared and cut to three: 16, 9, 4 of 29; the first two hold 86 %.
    found = sampling_logits(logits, Sampling(temperature=0.5, top_k=3, top_p=0.86))
    assert kept(found).tolist() == [True, True, False, False]
    np.testing.assert_allclose(found[:2], 2 * logits[:2], rtol=1e-6)
    assert kept(sampling_logits(logits, Sampling(top_k=3, top_p=0.86))).sum() == 3


def test_draws_follow_the_distribution():
    logits = jnp.asarray([1.0, 0.0, -1.0, 2.0])
    sampling = Sampling(temperature=2.0, top_k=3)
    drawn = sample(jax.random.key(0), jnp.tile(logits, (20_000, 1)), sampling)
    found = np.bincount(drawn, minlength=4) / 20_000
    expected = jax.nn.softmax(sampling_logits(logits, sampling))
    np.testing.assert_allclose(found, expected, atol=0.012)
    assert found[2] == 0


def test_a_token_has_the_probability_that_it_is_drawn_with():
    logits = jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))
    every = jnp.tile(logits, (4, 1)), jnp.arange(4)
    # Squared and cut to three: 16, 9, 4 of 29; of these 16 and 9 of 25.
    for sampling, expected in (
        (Sampling(), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(temperature=0.5, top_k=3), [16 / 29, 9 / 29, 4 / 29, 0]),
        (Sampling(temperature=0.5, top_k=3, top_p=0.86), [16 / 25, 9 / 25, 0, 0]),
        (GREEDY, [1, 0, 0, 0]),
    ):
        found = jnp.exp(sampling_log_prob(*every, sampling))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_greedy_takes_the_most_likely_without_a_key():
    logits = jnp.asarray([[0.0, 3.0, 1.0], [5.0, -1.0, 1.0]])
    assert sample(None, logits, GREEDY).tolist() == [1, 0]


def test_low_precision_is_truncated_in_float32():
    logits = jnp.zeros((1, 4096), jnp.bfloat16).at[0, 0].set(1.0)
    assert kept(sampling_logits(logits, Sampling(top_p=0.9))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0 and finite, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
    ],
)
def test_what_draws_no_token_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


def test_a_draw_needs_a_key():
    with pytest.raises(ValueError, match="key is None"):
        sample(None, jnp.zeros((1, 3)), Sampling())
