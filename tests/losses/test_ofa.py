"""The one-for-all loss: the authors' numbers, its laws and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.losses import ofa_loss, target_mask, weighted_mean

LABELS = jnp.array([1, 0, 4, 2, 4, 3])


def logits(seed, shape=(6, 5), scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", ["loss1", "loss2", "loss3"])
def test_values_and_gradients_are_the_authors(load_golden, case, precision, request):
    if precision == "float64":
        request.getfixturevalue("x64")
    numbers = load_golden("26-ofakd")
    student, teacher = (
        jnp.asarray(numbers[f"{case}_logits_{who}"], precision) for who in "st"
    )
    labels = jnp.asarray(numbers[f"{case}_target_mask"].argmax(-1))
    gamma, temperature = (float(numbers[f"{case}_{name}"]) for name in ("eps", "T"))
    value, gradient = jax.value_and_grad(
        lambda s: ofa_loss(s, teacher, labels, gamma, temperature).mean()
    )(student)
    rtol = 1e-10 if precision == "float64" else 1e-5
    expected = numbers[f"{case}_grad_logits_s"]
    np.testing.assert_allclose(value, numbers[f"{case}_loss"], rtol=rtol)
    np.testing.assert_allclose(
        gradient, expected, rtol=rtol, atol=rtol * np.abs(expected).max()
    )


def test_soft_labels_have_their_most_probable_class_as_target():
    soft = jnp.array([[0.1, 0.9, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    expected = [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(target_mask(soft, 3), expected)
    np.testing.assert_array_equal(target_mask(jnp.array([1, 0, 2]), 3), expected)
    s, t = logits(0, (3, 3)), logits(1, (3, 3))
    np.testing.assert_array_equal(
        ofa_loss(s, t, soft, 1.4), ofa_loss(s, t, jnp.array([1, 0, 2]), 1.4)
    )


some_logits = st.integers(0, 2**31).map(lambda seed: logits(seed, scale=4.0))


@settings(max_examples=25, deadline=None)
@given(some_logits, some_logits, st.floats(0.5, 4))
def test_without_enhancement_it_is_the_cross_entropy_with_the_teacher(s, t, T):
    expected = -jnp.sum(jax.nn.softmax(t / T) * jax.nn.log_softmax(s / T), axis=-1)
    loss = ofa_loss(s, t, LABELS, 1.0, T)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(some_logits, st.floats(1, 2), st.floats(0.1, 1))
def test_a_larger_gamma_raises_the_targets_weight_and_lowers_the_others(t, gamma, more):
    def weights(gamma):
        # The loss is linear in log p_s, whose coefficients its Jacobian gives:
        # ∂L/∂z_s = p_s·Σw − w, at uniform p_s.
        slope = jax.grad(lambda s: ofa_loss(s, t, LABELS, gamma).sum())(
            jnp.zeros((6, 5))
        )
        total = ofa_loss(jnp.zeros((6, 5)), t, LABELS, gamma) / jnp.log(5)
        return total[:, None] / 5 - slope

    target = np.asarray(target_mask(LABELS, 5))
    low, high = np.asarray(weights(gamma)), np.asarray(weights(gamma + more))
    assert np.all((high >= low - 1e-5)[target])
    assert np.all((high <= low + 1e-5)[~target])


def test_an_improbable_target_keeps_its_digits():
    t = jnp.array([[-18.0, 0.0]])
    gradient = jax.grad(lambda s: ofa_loss(s, t, jnp.array([0]), 1.5).sum())(
        jnp.array([[0.0, 30.0]])
    )
    # (1 + p)^1.5 − 1 for p = 1.5e-8, where 1 + p is 1 in float32.
    p = np.exp(-18.0) / (1 + np.exp(-18.0))
    student = np.exp(-30.0)
    weights = np.expm1(1.5 * np.log1p(p)), (1 - p) ** 1.5
    np.testing.assert_allclose(
        gradient[0, 0], student * sum(weights) - weights[0], rtol=1e-5
    )


def test_identity_is_no_minimum():
    t = logits(2)
    slope = jax.grad(lambda s: ofa_loss(s, t, LABELS, 1.3).sum())
    # The target's logit is still pushed up where the student is the teacher.
    pushed = jnp.take_along_axis(slope(t), LABELS[:, None], axis=-1)
    assert jnp.all(pushed < 0)


def test_one_value_an_example_jitted_vmapped_and_in_bf16():
    s, t = logits(1), logits(2)
    values = ofa_loss(s, t, LABELS, 1.3)
    assert values.shape == (6,)
    compiled = jax.jit(lambda s, t: ofa_loss(s, t, LABELS, 1.3))
    np.testing.assert_allclose(compiled(s, t), values, rtol=1e-5)
    stacked = jax.vmap(lambda s: ofa_loss(s, t, LABELS, 1.3))(jnp.stack([s, t]))
    np.testing.assert_allclose(stacked[0], values, rtol=1e-5)
    low = ofa_loss(s.astype(jnp.bfloat16), t.astype(jnp.bfloat16), LABELS, 1.3)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, values, rtol=2e-2, atol=2e-2)


def test_padding_with_a_label_that_is_no_class_counts_nothing():
    labels = LABELS.at[0].set(-1)
    assert np.isnan(ofa_loss(logits(1), logits(2), labels)[0])

    def loss(s):
        mask = jnp.ones(6).at[0].set(0)
        return weighted_mean(ofa_loss(s, logits(2), labels), mask)

    value, gradient = jax.value_and_grad(loss)(logits(1))
    assert jnp.isfinite(value)
    assert jnp.all(gradient[0] == 0)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ofa_loss(logits(0), logits(0, (6, 4)), LABELS), r"\(6, 5\).*\(6, 4\)"),
        (lambda: ofa_loss(logits(0), None, LABELS), "teacher_logits is None"),
        (lambda: ofa_loss(logits(0), logits(1), LABELS, 0.9), "gamma must be at least"),
        (lambda: ofa_loss(logits(0), logits(1), LABELS, 1.0, 0.0), "temperature"),
        (
            lambda: ofa_loss(logits(0), logits(1), LABELS[:2]),
            r"labels has shape \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
