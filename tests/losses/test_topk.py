"""The losses on a teacher's best tokens: exact numbers, laws and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from jaxkd.losses import kd_loss, reverse_kd_loss
from jaxkd.losses.topk import (
    gather_log_probs,
    top_k_kd_loss,
    top_k_log_probs,
    top_k_reverse_kd_loss,
)

VOCABULARY, K = 9, 4
LOSSES = {"forward": top_k_kd_loss, "reverse": top_k_reverse_kd_loss}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
either_rest = pytest.mark.parametrize("rest", [True, False], ids=["rest", "no rest"])


def logits(seed, shape=(2, 3, VOCABULARY), scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def expected(student, teacher, forward, rest):
    """The same by definition: probabilities in float64, and a sort of the tokens."""
    p, q = (
        np.exp(x - logsumexp(x, axis=-1, keepdims=True))
        for x in (np.asarray(z, np.float64) for z in (teacher, student))
    )
    order = np.argsort(-p, axis=-1, kind="stable")[..., :K]
    p, q = (np.take_along_axis(x, order, -1) for x in (p, q))
    if rest:
        p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (p, q))
    else:
        p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    return np.sum(p * np.log(p / q) if forward else q * np.log(q / p), axis=-1)


@every_loss
@either_rest
def test_is_the_definition(loss, rest):
    student, teacher = logits(0), logits(1)
    found = jax.jit(loss, static_argnames="rest")(
        student, *top_k_log_probs(teacher, K), rest=rest
    )
    right = expected(student, teacher, loss is top_k_kd_loss, rest)
    np.testing.assert_allclose(found, right, rtol=1e-5)


@either_rest
@pytest.mark.parametrize(
    ("loss", "whole"),
    [(top_k_kd_loss, kd_loss), (top_k_reverse_kd_loss, reverse_kd_loss)],
)
def test_all_tokens_are_the_usual_loss(loss, whole, rest):
    student, teacher = logits(0), logits(1)
    found = loss(student, *top_k_log_probs(teacher, VOCABULARY), rest=rest)
    np.testing.assert_allclose(found, whole(student, teacher, 1.0), rtol=1e-5)


@pytest.mark.slow
@every_loss
def test_gradient_is_the_slope(loss, x64):
    student, teacher = (z.astype(jnp.float64) for z in (logits(0), logits(1)))
    targets = top_k_log_probs(teacher, K)

    def total(z):
        return loss(z, *targets).sum()

    gradient, step = jax.grad(total)(student), 1e-6
    direction = logits(2).astype(jnp.float64)
    slope = total(student + step * direction) - total(student - step * direction)
    np.testing.assert_allclose(
        jnp.sum(gradient * direction), slope / (2 * step), rtol=1e-7
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 20))
def test_a_bound_of_the_whole_divergence(seed, scale):
    # Merging tokens into one class never raises a divergence.
    student, teacher = logits(seed, scale=scale), logits(seed + 1, scale=scale)
    merged = top_k_kd_loss(student, *top_k_log_probs(teacher, K))
    whole = kd_loss(student, teacher, 1.0)
    # The rest's mass is known to 1e-7, and counts with a log-ratio of up to 100.
    assert (merged >= -1e-5).all()
    assert (merged <= whole * (1 + 1e-5) + 1e-5).all()


@pytest.mark.slow
def test_only_the_rest_holds_the_other_tokens_down():
    ids, log_probs = top_k_log_probs(logits(1), K)
    others = 1 - jax.nn.one_hot(ids, VOCABULARY).sum(-2)

    def slope(rest):
        gradient = jax.grad(
            lambda z: top_k_kd_loss(z, ids, log_probs, rest=rest).sum()
        )(logits(0))
        return jnp.sum(gradient * others, axis=-1)

    np.testing.assert_allclose(slope(False), 0, atol=1e-6)
    assert (jnp.abs(slope(True)) > 1e-4).all()


def test_half_precision_and_small_integers_cost_their_rounding_alone():
    student, (ids, log_probs) = logits(0), top_k_log_probs(logits(1), K)
    exact = top_k_kd_loss(student, ids, log_probs)
    short = student.astype(jnp.bfloat16)
    np.testing.assert_allclose(
        top_k_kd_loss(short, ids.astype(jnp.uint8), log_probs),
        top_k_kd_loss(short.astype(jnp.float32), ids, log_probs),
        rtol=1e-6,
    )
    # A log-probability of −10 in float16 is off by 0.004 at most, a probability by as
    # much of itself.
    rounded = top_k_kd_loss(student, ids, log_probs.astype(jnp.float16))
    np.testing.assert_allclose(rounded, exact, rtol=5e-3, atol=5e-3)
    assert (rounded != exact).any()


def test_best_tokens_come_first_and_have_the_vocabulary_s_probabilities():
    z = logits(3)
    ids, log_probs = top_k_log_probs(z, K)
    whole = jax.nn.log_softmax(z)
    np.testing.assert_allclose(log_probs, -jnp.sort(-whole)[..., :K], rtol=1e-6)
    np.testing.assert_allclose(gather_log_probs(z, ids), log_probs, rtol=1e-6)


def test_an_id_outside_the_vocabulary_is_nan_in_its_token_alone():
    ids, log_probs = top_k_log_probs(logits(1), K)
    for outside in (VOCABULARY, -1, -VOCABULARY - 1):
        found = top_k_kd_loss(logits(0), ids.at[0, 1, 2].set(outside), log_probs)
        assert np.isnan(found).tolist() == [[False, True, False], [False] * 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k_log_probs(logits(0), 0), "k must be 1 to 9"),
        (lambda: top_k_log_probs(logits(0), 10), "k must be 1 to 9"),
        (
            lambda: top_k_kd_loss(
                logits(0), jnp.zeros((2, 3, 4), int), jnp.zeros((2, 3, 5))
            ),
            r"teacher_ids has shape \(2, 3, 4\) but teacher_log_probs has \(2, 3, 5\)",
        ),
        (
            lambda: top_k_kd_loss(
                logits(0), jnp.zeros((2, 4, 4), int), jnp.zeros((2, 4, 4))
            ),
            r"teacher_ids has shape \(2, 4, 4\), but must be \(batch, k\)",
        ),
        (
            lambda: gather_log_probs(logits(0), jnp.zeros((2, 3, 10), int)),
            "10 tokens each, but the vocabulary of logits is 9",
        ),
        (lambda: top_k_kd_loss(logits(0), None, None), "teacher_ids is None"),
    ],
)
def test_bad_arguments_are_named(call, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        call()
