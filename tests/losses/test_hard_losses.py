"""HARD's losses against NumPy in double precision, and whom their gradients reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxkd import losses


def draw():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(0, 2, (5, 4))) for _ in range(4)]


def kl(a, b, temperature):
    log_a, log_b = (log_softmax(np.asarray(z) / temperature, -1) for z in (a, b))
    return temperature**2 * (np.exp(log_a) * (log_a - log_b)).sum(-1)


def test_values_are_the_formulas(x64):
    clean, taught, learnt, student = draw()
    np.testing.assert_allclose(
        losses.disagreement(taught, learnt, 3.0), kl(taught, learnt, 3.0), rtol=1e-10
    )
    loss, parts = losses.hard_augmenter_loss(clean, taught, learnt, 2.0, 0.7, 1.5)
    apart = kl(taught, learnt, 2.0)
    assert 0 < (apart > 1.5).sum() < 5  # the cap is reached, and not by all
    drift = kl(clean, taught, 2.0)
    np.testing.assert_allclose(loss, 0.7 * drift - np.minimum(apart, 1.5), rtol=1e-10)
    np.testing.assert_allclose(parts["drift"], drift, rtol=1e-10)
    np.testing.assert_allclose(parts["disagreement"], apart, rtol=1e-10)
    labels = jnp.array([0, 1, 2, 3, 0])
    given = student, clean, learnt, taught
    loss, parts = losses.hard_student_loss(*given, labels, 0.2)
    both = kl(clean, student, 2.0), kl(taught, learnt, 2.0)
    labelled = -log_softmax(np.asarray(student), -1)[np.arange(5), labels]
    np.testing.assert_allclose(loss, 0.4 * sum(both) + 0.2 * labelled, rtol=1e-10)
    assert set(parts) == {"clean", "augmented", "cross_entropy"}
    np.testing.assert_allclose(losses.hard_student_loss(*given)[0], sum(both) / 2)


def test_gradients_reach_the_image_and_stop_at_constants(x64):
    clean, taught, learnt, student = draw()

    def augmenter(clean, taught, learnt):
        return losses.hard_augmenter_loss(clean, taught, learnt, cap=1.5)[0].sum()

    slopes = jax.jit(jax.grad(augmenter, (0, 1, 2)))(clean, taught, learnt)
    assert (slopes[0] == 0).all()
    assert (slopes[1] != 0).all()
    capped = losses.disagreement(taught, learnt) > 1.5
    assert (slopes[2][capped] == 0).all()
    assert (slopes[2][~capped] != 0).all()

    def learner(*given):
        return losses.hard_student_loss(*given)[0].sum()

    slopes = jax.jit(jax.grad(learner, (0, 1, 2, 3)))(student, clean, learnt, taught)
    assert all((slopes[i] != 0).any() for i in (0, 2))
    assert all((slopes[i] == 0).all() for i in (1, 3))


def test_bad_input_is_refused(unchecked_shapes):
    z = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="cap must be above 0, got 0"):
        losses.hard_augmenter_loss(z, z, z, cap=0)
    with pytest.raises(ValueError, match=r"lam is 0.5 but labels is None"):
        losses.hard_student_loss(z, z, z, z, lam=0.5)
    with pytest.raises(ValueError, match="lam must be in"):
        losses.hard_student_loss(z, z, z, z, lam=1.5)
    with pytest.raises(ValueError, match="student_logits has shape"):
        losses.disagreement(z, jnp.zeros((2, 4)))
