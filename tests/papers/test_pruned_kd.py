"""Data pruning's loss, its α, and its ridge regression: closed forms and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import call

from jaxkd import Outputs
from jaxkd.papers.data_pruning import (
    alpha_for_fraction,
    pruned_kd,
    ridge_self_distill,
)

RNG = np.random.default_rng(0)


def test_the_loss_weighs_labels_and_teacher():
    z, t = RNG.normal(size=(2, 5, 4)) * 3
    y = np.array([0, 3, 1, 2, 2])

    def log_p(logits):
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    ce = -log_p(z)[np.arange(5), y].mean()
    p, q = log_p(t / 2), log_p(z / 2)
    kl = (np.exp(p) * (p - q)).sum(-1).mean()
    for alpha in (0.0, 0.3, 1.0):
        method = pruned_kd(alpha, temperature=2.0)
        student, teacher = (Outputs(jnp.asarray(x, jnp.float32)) for x in (z, t))
        batch = {"label": jnp.asarray(y)}
        variables = method.init(jax.random.key(0), student, teacher, batch)
        loss, _ = call(method, variables, student, teacher, batch, jax.random.key(0))
        right = (1 - alpha) * ce + alpha * 4 * kl
        assert float(loss) == pytest.approx(right, rel=1e-5)


def test_alpha_falls_as_more_is_kept():
    assert alpha_for_fraction(0.02) == alpha_for_fraction(0.1) == 1
    assert alpha_for_fraction(1.0) == 0.5
    assert alpha_for_fraction(10**-0.5) == pytest.approx(0.75)
    assert alpha_for_fraction(0.5, [(0.25, 0.8), (1.0, 0.2)]) == pytest.approx(0.5)


def test_the_ridge_fit_solves_its_normal_equations():
    x, y = RNG.normal(size=(20, 6)), RNG.normal(size=20)
    teacher = ridge_self_distill(x, y, None, 0.5, 0.7)
    gram = x.T @ x + 0.5 * np.eye(6)
    np.testing.assert_allclose(gram @ teacher, x.T @ y, atol=1e-12)
    same = ridge_self_distill(x, y, teacher, 0.5, 0.0)
    np.testing.assert_allclose(same, teacher, atol=1e-14)
    # Of its own fit alone every direction of X shrinks once more.
    d, v = np.linalg.eigh(x.T @ x)
    again = ridge_self_distill(x, y, teacher, 0.5, 1.0)
    np.testing.assert_allclose(v.T @ again, d / (d + 0.5) * (v.T @ teacher), rtol=1e-10)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (pruned_kd, {"alpha": 1.2}, "alpha must be in"),
        (alpha_for_fraction, {"fraction": 0.0}, "fraction must be in"),
        (
            alpha_for_fraction,
            {"fraction": 0.5, "points": ((1.0, 0.5), (0.1, 1.0))},
            "fractions rising",
        ),
        (
            ridge_self_distill,
            {"x": np.ones((2, 1)), "y": np.ones(2), "lam": -1.0},
            "lam must be at least 0",
        ),
    ],
)
def test_bad_input_is_named(function, arguments, message):
    given = {"w_teacher": None, "alpha": 0.5} if function is ridge_self_distill else {}
    with pytest.raises(ValueError, match=message):
        function(**given, **arguments)
