"""Sub-classes: what sums to what, given kinds, and a student's outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

import jaxkd
from jaxkd import Outputs, methods, models, networks
from jaxkd.losses import (
    SubclassDirections,
    hard_subclass_targets,
    subclass_log_probs,
    subclass_loss,
    subclass_targets,
)

RNG = np.random.default_rng(0)
BATCH, CLASSES, KINDS, CHANNELS = 5, 3, 4, 7
LOGITS = jnp.asarray(RNG.normal(0, 2, (BATCH, CLASSES)), jnp.float32)
FEATURES = jnp.asarray(RNG.normal(size=(BATCH, CHANNELS)), jnp.float32)
FOUND = SubclassDirections(
    jnp.asarray(RNG.normal(size=(CLASSES, CHANNELS)), jnp.float32),
    jnp.asarray(RNG.normal(size=(CLASSES, CHANNELS, KINDS)), jnp.float32),
)
STUDENT = jnp.asarray(RNG.normal(size=(BATCH, CLASSES * KINDS)), jnp.float32)


def test_targets_loss_and_marginals_are_the_formulas():
    targets = subclass_targets(FEATURES, LOGITS, FOUND, 0.5)
    p, h = softmax(np.asarray(LOGITS, np.float64), -1), np.asarray(FEATURES, np.float64)
    expected = np.empty((BATCH, CLASSES, KINDS))
    for c in range(CLASSES):
        kinds = (h - np.asarray(FOUND.means[c])) @ np.asarray(FOUND.directions[c])
        expected[:, c] = p[:, c, None] * softmax(kinds / 0.5, -1)
    np.testing.assert_allclose(jnp.exp(targets), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(targets).sum(-1), p, rtol=1e-5)

    temperature = 3.0
    t = log_softmax(np.log(expected).reshape(BATCH, -1) / temperature, -1)
    s = log_softmax(np.asarray(STUDENT, np.float64) / temperature, -1)
    divergence = temperature**2 * (np.exp(t) * (t - s)).sum(-1)
    found = subclass_loss(STUDENT, targets, temperature)
    np.testing.assert_allclose(found, divergence, rtol=1e-4)

    marginal = softmax(np.asarray(STUDENT), -1).reshape(BATCH, CLASSES, KINDS).sum(-1)
    found = jnp.exp(subclass_log_probs(STUDENT, CLASSES))
    np.testing.assert_allclose(found, marginal, rtol=1e-5)


def test_the_largest_output_need_not_be_in_the_likeliest_class():
    logits = jnp.log(jnp.array([[0.4, 0.0, 0.3, 0.3]]))
    found = jnp.exp(subclass_log_probs(logits, 2))
    np.testing.assert_allclose(found, [[0.4, 0.6]], rtol=1e-6)
    assert logits.argmax() // 2 == 0


def test_given_kinds():
    assignments = jnp.array([0, 5, 11, -1, 6])
    targets = jnp.exp(hard_subclass_targets(assignments, LOGITS, KINDS, 0.2))
    p = jax.nn.softmax(LOGITS)
    np.testing.assert_allclose(targets.sum(-1), p, rtol=1e-5)
    np.testing.assert_allclose(targets[0, 0] / p[0, 0], [0.85, 0.05, 0.05, 0.05], 1e-4)
    np.testing.assert_allclose(targets[0, 1] / p[0, 1], [0.25] * 4, rtol=1e-5)
    np.testing.assert_allclose(targets[3] / p[3][:, None], 0.25, rtol=1e-5)
    # One-hot kinds leave others at −∞, which the loss does not count.
    value, gradient = jax.value_and_grad(
        lambda s: subclass_loss(
            s, hard_subclass_targets(assignments, LOGITS, KINDS), 1.0
        ).sum()
    )(STUDENT)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    beyond = jax.jit(lambda a: hard_subclass_targets(a, LOGITS, KINDS))(assignments + 1)
    assert np.isnan(beyond[2]).all()
    assert np.isfinite(jnp.exp(beyond)[np.array([0, 1, 3, 4])]).all()


def test_a_student_of_the_users_own_learns_kinds_and_is_tested_on_classes():
    image = jnp.asarray(RNG.normal(size=(BATCH, CHANNELS)), jnp.float32)
    label = jnp.arange(BATCH) % CLASSES
    teacher = models.mlp(CHANNELS, (CHANNELS,), CLASSES)
    teacher = teacher.with_variables(teacher.init(jax.random.key(0)))
    plain = models.mlp(CHANNELS, (6,), CLASSES * KINDS)
    student = networks.with_subclasses(plain, CLASSES)
    batch = {"image": image, "label": label, "index": jnp.arange(BATCH)}
    method = methods.combine(
        (1.0, methods.lelp(FOUND)),
        (0.5, methods.subclass_kd(KINDS * np.asarray(label), KINDS, 0.1)),
        (0.5, methods.cross_entropy()),
    )
    program = jaxkd.distill(student, teacher, method, optax.adam(1e-2))
    state = program.init(jax.random.key(1), batch)
    step, values = jax.jit(program.step), []
    for _ in range(20):
        state, metrics = step(state, batch)
        values.append(float(metrics["loss"]))
    assert values[-1] < values[0]
    taps = ("hidden0", "subclass.logits")
    outputs, _ = student.apply(state.student, image, taps=taps)
    alone, _ = plain.apply(state.student, image)
    np.testing.assert_array_equal(outputs.features["subclass.logits"], alone.logits)
    np.testing.assert_array_equal(
        outputs.logits, subclass_log_probs(alone.logits, CLASSES)
    )
    assert set(outputs.features) == set(taps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: subclass_targets(FEATURES[:, 1:], LOGITS, FOUND), "7 channels: tap"),
        (lambda: subclass_targets(FEATURES, LOGITS, FOUND, 0.0), "beta must be above"),
        (
            lambda: subclass_loss(STUDENT[:, 1:], jnp.zeros((5, 3, 4))),
            "need 12 outputs",
        ),
        (lambda: subclass_log_probs(STUDENT, 5), "12 outputs, which 5 classes cannot"),
        (
            lambda: hard_subclass_targets(jnp.full(5, 12), LOGITS, KINDS),
            "assignments must be -1 to 11",
        ),
        (
            lambda: methods.subclass_kd(np.arange(5), KINDS).loss(
                {"state": {}}, Outputs(LOGITS), Outputs(LOGITS), {"label": 0}, None, 0
            ),
            "needs index",
        ),
    ],
)
def test_bad_input_is_refused(call, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        call()
