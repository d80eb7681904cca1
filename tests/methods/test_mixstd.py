"""MIXSTD against the authors' numbers, and how smoothness is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy
from tiny import call

from jaxkd import Outputs, losses, methods
from jaxkd.evaluation.smoothness import smoothness_metrics


@pytest.mark.parametrize("case", ["c0", "c1"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_authors_numbers(load_golden, case, precision, request):
    if precision == "float64":
        request.getfixturevalue("x64")
    found = load_golden("40-mixkd")
    get = {k[3:]: v for k, v in found.items() if k.startswith(case)}
    student, teacher, label = (
        jnp.asarray(get[name], precision)
        for name in ("student_logits", "teacher_logits", "soft_targets")
    )
    gamma, alpha = float(get["gamma"]), float(get["alpha"])
    method, batch = methods.mixstd(gamma, alpha), {"label": label}
    outputs = Outputs(student), Outputs(teacher)
    variables = method.init(jax.random.key(0), *outputs, batch)

    def loss(student):
        both = Outputs(student), outputs[1]
        key = jax.random.key(1)
        value, (_, metrics) = call(method, variables, *both, batch, key)
        return value, metrics

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradient = grad(student)
    # The authors add nothing to the deviation, here it is 1e-7.
    rtol = 1e-6 if precision == "float64" else 1e-5
    parts = gamma * metrics["ls_cross_entropy"], alpha * metrics["ls_kd"]
    for part, name in zip(parts, ("loss_cls", "loss_kd"), strict=True):
        np.testing.assert_allclose(part, get[name], rtol=rtol)
    np.testing.assert_allclose(value, get["loss_cls"] + get["loss_kd"], rtol=rtol)
    scale = np.abs(get["grad"]).max()
    np.testing.assert_allclose(gradient, get["grad"], rtol=rtol, atol=rtol * scale)


def test_the_gradient_goes_through_the_deviation():
    """Longer logits are the same to it: the gradient has no part along them."""
    z = np.random.default_rng(0).normal(size=(4, 5)).astype("f4")

    def loss(z):
        return losses.cross_entropy_loss(
            losses.standardize_logits(z), jnp.arange(4)
        ).sum()

    gradient = jax.jit(jax.grad(loss))(z)
    np.testing.assert_allclose((gradient * z).sum(-1), 0, atol=1e-5)
    assert np.abs(gradient).max() > 0.1


def test_smoothness_is_the_formulas():
    logits = np.random.default_rng(0).normal(0, 3, (20, 6))
    found = jax.jit(smoothness_metrics)(logits)
    p = softmax(logits, -1)
    np.testing.assert_allclose(found["entropy"], entropy(p, axis=-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["confidence"], p.max(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        found["logit_deviation"], logits.std(-1, ddof=1).mean(), rtol=1e-5
    )


def test_one_class_has_no_deviation(unchecked_shapes):
    with pytest.raises(ValueError, match="logits has 1 class"):
        losses.logit_deviation(jnp.ones((2, 1)))
