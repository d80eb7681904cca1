"""Scaling laws: known laws are found again, from any start, and predict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.evaluation.scaling import ScalingLaw, fit_scaling_law

BUDGETS = 1e9 * 2.0 ** np.arange(5)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.5, 3), st.floats(0.05, 1), st.floats(0.1, 0.8))
def test_a_law_is_found_again_and_predicts(floor, excess, exponent):
    law = ScalingLaw(floor, excess * 1e9**exponent, exponent)
    found = fit_scaling_law(BUDGETS[:4], law(BUDGETS[:4]))
    assert found.relative_error(BUDGETS[4:], law(BUDGETS[4:])) < 1e-4
    np.testing.assert_allclose(found(BUDGETS), law(BUDGETS), rtol=1e-4)


def test_the_law_and_its_error_by_hand():
    law = ScalingLaw(1.0, 8.0, 0.5)
    np.testing.assert_allclose(law([4.0, 16.0]), [5.0, 3.0])
    np.testing.assert_allclose(law.relative_error([4.0, 16.0], [4.0, 3.0]), 0.125)


def test_noise_moves_the_law_little():
    rng = np.random.default_rng(0)
    law = ScalingLaw(1.7, 400.0, 0.3)
    noisy = law(BUDGETS) * np.exp(1e-3 * rng.normal(size=5))
    assert fit_scaling_law(BUDGETS[:4], noisy[:4]).relative_error(BUDGETS, noisy) < 0.01


def test_equal_losses_have_a_level_law():
    found = fit_scaling_law(BUDGETS, np.ones(5))
    np.testing.assert_allclose(found(BUDGETS), 1, rtol=1e-5)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"tokens holds 3 different budgets"):
        fit_scaling_law([1.0, 2.0, 3.0, 3.0], [4.0, 3.0, 2.0, 2.0])
    with pytest.raises(ValueError, match=r"one loss a budget"):
        fit_scaling_law([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0])
    with pytest.raises(ValueError, match=r"must be above 0"):
        fit_scaling_law([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 0.0])
