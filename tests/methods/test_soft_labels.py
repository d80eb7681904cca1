"""Labels of mixed examples: probabilities where they fit, an error elsewhere."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import call

from jaxkd import Outputs, losses, methods

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 3)) * 4
HARD = np.array([0, 2, 1, 1, 0])
SOFT = RNG.dirichlet(np.ones(3), 5).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_probabilities(smoothing):
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    target = (1 - smoothing) * SOFT.astype(np.float64) + smoothing / 3
    found = losses.cross_entropy_loss(jnp.asarray(LOGITS), jnp.asarray(SOFT), smoothing)
    np.testing.assert_allclose(found, -(target * log_p).sum(1), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_certain_probabilities_are_class_indices(smoothing):
    def loss(logits, labels):
        return losses.cross_entropy_loss(logits, labels, smoothing).sum()

    hard, soft = (
        jax.value_and_grad(loss)(jnp.asarray(LOGITS), jnp.asarray(labels))
        for labels in (HARD, np.eye(3, dtype=np.float32)[HARD])
    )
    chex.assert_trees_all_close(hard, soft, rtol=1e-6)


def test_the_method_takes_probabilities_and_honours_the_mask():
    student = Outputs(jnp.asarray(LOGITS), {})
    method = methods.cross_entropy()

    @jax.jit
    def loss(label):
        batch = {"label": label, "mask": jnp.array([1, 1, 0, 1, 0])}
        return call(method, {"params": {}, "state": {}}, student, None, batch)

    each = losses.cross_entropy_loss(student.logits, jnp.asarray(SOFT))
    found, _ = loss(jnp.asarray(SOFT))
    np.testing.assert_allclose(found, each[jnp.array([0, 1, 3])].mean(), rtol=1e-6)


@pytest.mark.parametrize("labels", [SOFT[:, :2], SOFT[:4], SOFT[:, 0], HARD[:4]])
def test_labels_of_another_shape_are_refused(labels, unchecked_shapes):
    with pytest.raises(
        ValueError, match=r"labels has shape .* but logits has \(5, 3\)"
    ):
        losses.cross_entropy_loss(jnp.asarray(LOGITS), jnp.asarray(labels))


def dkd(labels):
    logits = jnp.asarray(LOGITS)
    return losses.dkd_loss(logits, logits, labels)


def one(labels):
    logits = jnp.asarray(LOGITS)
    return losses.one_loss(jnp.stack([logits] * 2), jnp.full((5, 2), 0.5), labels)


def kdcl(labels):
    return losses.kdcl_targets([jnp.asarray(LOGITS)] * 2, labels)


def crd(labels):
    index = jnp.arange(2)
    return losses.sample_negatives(jax.random.key(0), np.asarray(labels), index, 2)


@pytest.mark.parametrize("loss", [dkd, one, kdcl, crd])
def test_losses_of_class_indices_say_so(loss, unchecked_shapes):
    assert np.isfinite(loss(jnp.asarray(HARD))).all()
    for labels in (SOFT, SOFT[:, 0]):
        message = r"labels is float32 of shape \(5.*needs class indices: leave Mixup"
        with pytest.raises(ValueError, match=message):
            loss(jnp.asarray(labels))


def test_the_method_says_so_in_a_compiled_step(unchecked_shapes):
    outputs = Outputs(jnp.asarray(LOGITS), {})
    variables = {"params": {}, "state": {}}

    @jax.jit
    def loss(label):
        batch = {"label": label}
        return call(methods.dkd(), variables, outputs, outputs, batch)

    with pytest.raises(ValueError, match="needs class indices"):
        loss(SOFT)
