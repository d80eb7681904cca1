"""Ensembles of clients against NumPy in float64, their laws, and broken members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from jaxkd.losses import (
    ambiguity_filter,
    era_sharpen,
    fd_distill_loss,
    kd_loss,
    masked_ensemble,
    weighted_mean,
)


@pytest.fixture(params=[("float32", 1e-5), ("float64", 1e-12)], ids=lambda p: p[0])
def precision(request):
    if request.param[0] == "float64":
        request.getfixturevalue("x64")
    return request.param


def draw(clients=4, samples=6, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    predictions = softmax(rng.normal(0, 3, (clients, samples, classes)), -1)
    masks = rng.random((clients, samples)) < 0.5
    masks[:, 1] = False
    masks[:, 2] = True
    return predictions, masks


def test_the_ensemble_is_the_mean_of_who_contributes(precision):
    dtype, rtol = precision
    predictions, masks = draw()
    mean, valid = jax.jit(masked_ensemble)(jnp.asarray(predictions, dtype), masks)
    assert mean.dtype == dtype
    for i in range(predictions.shape[1]):
        mine = predictions[masks[:, i], i]
        assert bool(valid[i]) == (len(mine) > 0)
        expected = mine.mean(0) if len(mine) else np.zeros(5)
        np.testing.assert_allclose(mean[i], expected, rtol=rtol)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_costs_its_own_prediction(bad):
    predictions, masks = draw()
    masks[:] = True
    broken = predictions.copy()
    broken[1, :, 3] = bad
    broken[2, 0, 0] = bad
    mean, valid = masked_ensemble(jnp.asarray(broken), jnp.asarray(masks))
    masks[1] = False
    masks[2, 0] = False
    expected, _ = masked_ensemble(jnp.asarray(predictions), jnp.asarray(masks))
    np.testing.assert_array_equal(mean, expected)
    assert valid.all()
    all_broken, valid = masked_ensemble(
        jnp.full((2, 3, 4), bad), jnp.ones((2, 3), bool)
    )
    assert not valid.any()
    np.testing.assert_array_equal(all_broken, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_ensembles_do_not_depend_on_the_clients_order(seed):
    predictions, masks = draw(seed=seed)
    order = np.random.default_rng(seed).permutation(4)
    a = masked_ensemble(jnp.asarray(predictions), jnp.asarray(masks))
    b = masked_ensemble(jnp.asarray(predictions[order]), jnp.asarray(masks[order]))
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    np.testing.assert_array_equal(a[1], b[1])
    # The mean of distributions is one.
    np.testing.assert_allclose(a[0].sum(-1), a[1], atol=1e-6)


def test_bf16_predictions_are_averaged_in_float32():
    predictions, masks = draw(clients=3)
    low = jnp.asarray(predictions, jnp.bfloat16)
    mean, _ = masked_ensemble(low, jnp.asarray(masks))
    assert mean.dtype == jnp.float32
    expected, _ = masked_ensemble(low.astype(jnp.float32), jnp.asarray(masks))
    np.testing.assert_array_equal(mean, expected)


@pytest.mark.usefixtures("unchecked_shapes")
def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and masks \(3, 2\): give"):
        masked_ensemble(jnp.ones((2, 3, 4)), jnp.ones((3, 2), bool))


def test_sharpening_takes_probabilities_as_logits(precision):
    dtype, rtol = precision
    p = draw()[0]
    for temperature in (0.1, 0.5):
        found = era_sharpen(jnp.asarray(p, dtype), temperature)
        expected = softmax(p / temperature, -1)
        np.testing.assert_allclose(found, expected, rtol=10 * rtol)


def test_sharpening_leaves_the_undecided_alone():
    certain, even, clear = era_sharpen(
        jnp.array([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.6, 0.3, 0.1]])
    )
    assert certain[0] > 0.999
    np.testing.assert_allclose(even, 1 / 3, rtol=1e-6)
    assert 0.6 < clear[0] < 1
    with pytest.raises(ValueError, match="temperature must be above 0"):
        era_sharpen(jnp.eye(3), 0.0)


def test_ambiguous_samples_are_dropped():
    p = jnp.array([[0.5, 0.5], [0.6, 0.4], [0.1, 0.9]])
    assert ambiguity_filter(p, 0.6).tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2"):
        ambiguity_filter(p, 2.0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_loss_and_gradient_in_closed_form(precision, temperature):
    dtype, rtol = precision
    rng = np.random.default_rng(1)
    z, targets = rng.normal(0, 3, (6, 5)), draw()[0][0]
    targets[0] = np.eye(5)[2]
    log_q = log_softmax(z / temperature, -1)
    terms = np.where(targets > 0, targets * (np.log(targets + 1e-300) - log_q), 0)
    arguments = jnp.asarray(z, dtype), jnp.asarray(targets, dtype)

    def loss(z, targets):
        return fd_distill_loss(z, targets, temperature=temperature)

    np.testing.assert_allclose(
        jax.jit(loss)(*arguments), temperature**2 * terms.sum(-1), rtol=rtol
    )
    gradients = jax.grad(lambda *a: loss(*a).sum(), argnums=(0, 1))(*arguments)
    np.testing.assert_allclose(
        gradients[0], temperature * (np.exp(log_q) - targets), rtol=10 * rtol, atol=rtol
    )
    np.testing.assert_array_equal(gradients[1], 0)


def test_it_is_hintons_loss_where_the_ensemble_is_one_teacher():
    rng = np.random.default_rng(2)
    student, teacher = (jnp.asarray(rng.normal(0, 3, (6, 5))) for _ in range(2))
    found = fd_distill_loss(student, jax.nn.softmax(teacher / 4), temperature=4.0)
    np.testing.assert_allclose(found, kd_loss(student, teacher, 4.0), rtol=2e-5)


def test_samples_without_a_target_have_neither_loss_nor_gradient():
    rng = np.random.default_rng(3)
    z = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32).at[1].set(jnp.nan)
    targets = jnp.asarray(softmax(rng.normal(size=(4, 3)), -1), jnp.float32)
    targets = targets.at[0].set(jnp.nan).at[1].set(0)
    valid = jnp.array([False, False, True, True])

    def mean(z, valid):
        return weighted_mean(fd_distill_loss(z, targets, valid), valid)

    value, gradient = jax.value_and_grad(mean)(z, valid)
    expected = jax.value_and_grad(lambda z: fd_distill_loss(z, targets[2:]).mean())
    np.testing.assert_allclose(value, expected(z[2:])[0], rtol=1e-6)
    np.testing.assert_array_equal(gradient[:2], 0)
    np.testing.assert_allclose(gradient[2:], expected(z[2:])[1], rtol=1e-6)
    value, gradient = jax.value_and_grad(mean)(z, jnp.zeros(4, bool))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.usefixtures("unchecked_shapes")
def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"logits has shape \(2, 3\) but targets \(2,"):
        fd_distill_loss(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        fd_distill_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature=-1)
