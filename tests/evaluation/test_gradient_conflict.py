"""Conflicts of several gradients, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.evaluation.gradients import gradient_conflict


def test_cosines_over_all_leaves():
    found = jax.jit(gradient_conflict)(
        {"a": jnp.array([[3.0], [-3.0], [0.0]]), "b": jnp.array([4.0, 4.0, 0.0])}
    )
    expected = [[1, 7 / 25, 0], [7 / 25, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(found.cosines, expected, rtol=1e-6)
    np.testing.assert_allclose(found.mean, 7 / 75, rtol=1e-6)
    assert found.negative == 0
    grads = {"a": jnp.array([[3.0], [-3.0], [1.0]]), "b": jnp.zeros(3)}
    opposed = jax.jit(gradient_conflict)(grads)
    np.testing.assert_allclose(opposed.negative, 2 / 3, rtol=1e-6)


def test_one_gradient_has_no_conflict():
    with pytest.raises(ValueError, match="gradients must be at least 2, stacked"):
        gradient_conflict({"a": jnp.ones((1, 3))})
