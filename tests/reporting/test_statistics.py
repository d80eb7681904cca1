"""Paired tests and Holm's correction against SciPy and numbers worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxkd.reporting.statistics import LEVEL, holm, paired_test

A = [0.81, 0.84, 0.79, 0.88, 0.83]
B = [0.80, 0.81, 0.80, 0.84, 0.79]
DIFFERENCES = [a - b for a, b in zip(A, B, strict=True)]


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.05])
def test_superiority_is_scipy_s_one_sided_paired_test(margin):
    found = paired_test(DIFFERENCES, margin)
    shifted = [b + margin for b in B]
    for p, alternative in ((found.p_holds, "greater"), (found.p_fails, "less")):
        expected = stats.ttest_rel(A, shifted, alternative=alternative).pvalue
        assert p == pytest.approx(expected, rel=1e-9)


def test_the_bounds_are_one_sided():
    # Differences 1, 2, 3: mean 2, standard error 1/√3, t(0.95; 2) = 2.919986.
    found = paired_test([1.0, 2.0, 3.0])
    half = 2.919986 / math.sqrt(3)
    assert (found.lower, found.mean, found.upper) == pytest.approx(
        (2 - half, 2.0, 2 + half), rel=1e-6
    )
    # At the bound itself the p-value is the level.
    assert paired_test([1.0, 2.0, 3.0], found.lower).p_holds == pytest.approx(LEVEL)


def test_non_inferiority_moves_the_threshold_below_zero():
    found = paired_test(DIFFERENCES, 0.02, "non-inferiority")
    shifted = [b - 0.02 for b in B]
    expected = stats.ttest_rel(A, shifted, alternative="greater").pvalue
    assert found.p_holds == pytest.approx(expected, rel=1e-9)
    assert found.p_fails == pytest.approx(1 - expected, rel=1e-9)


def test_equivalence_is_two_one_sided_tests():
    # Mean 0.022, standard error 0.0097: t is 8.04 above −0.056 and −3.50 below 0.056.
    found = paired_test(DIFFERENCES, 0.056, "equivalence")
    error = np.std(DIFFERENCES, ddof=1) / math.sqrt(5)
    above, below = (0.022 + 0.056) / error, (0.022 - 0.056) / error
    expected = max(stats.t.sf(above, 4), stats.t.cdf(below, 4))
    assert found.p_holds == pytest.approx(expected, rel=1e-6)
    assert found.p_holds == pytest.approx(0.01246, rel=1e-2)
    # Beyond the margin on either side it fails.
    for sign in (1, -1):
        far = [sign * (1 + d) for d in DIFFERENCES]
        assert paired_test(far, 0.056, "equivalence").p_fails < 1e-6
        assert paired_test(far, 0.056, "equivalence").p_holds > 0.999


@pytest.mark.parametrize(
    ("difference", "margin", "kind", "p_values"),
    [
        (0.1, 0.0, "superiority", (0.0, 1.0)),
        (-0.1, 0.0, "superiority", (1.0, 0.0)),
        (0.0, 0.0, "superiority", (0.5, 0.5)),
        (-0.1, 0.2, "non-inferiority", (0.0, 1.0)),
        (-0.3, 0.2, "non-inferiority", (1.0, 0.0)),
        (0.1, 0.2, "equivalence", (0.0, 1.0)),
        (-0.3, 0.2, "equivalence", (1.0, 0.0)),
    ],
)
def test_equal_differences_decide_by_themselves(difference, margin, kind, p_values):
    # Summing 0.1 rounds: three times it is not 3 · 0.1.
    found = paired_test([difference] * 3, margin, kind)
    assert (found.p_holds, found.p_fails) == p_values
    assert found.lower == found.mean == found.upper == difference


def test_the_level_is_kept_where_nothing_differs():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(1000, 4)).tolist()
    false = np.mean([paired_test(d).p_holds < LEVEL for d in draws])
    assert false == pytest.approx(LEVEL, abs=3 * math.sqrt(LEVEL * 0.95 / 1000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], 0.0), "needs at least 2 differences, got 1"),
        (([0.1, 0.2], -0.1), "margin must be finite and not negative, got -0.1"),
        (([0.1, 0.2], math.nan), "margin must be finite and not negative, got nan"),
        (([0.1, 0.2], math.inf), "margin must be finite and not negative, got inf"),
        (([0.1, math.nan], 0.0), "differences must be finite, got nan"),
        (([0.1, math.inf], 0.0), "differences must be finite, got inf"),
        (([0.1, 0.2], 0.0, "equivalence"), "equivalence needs one above 0"),
        (([0.1, 0.2], 0.1, "inferiority"), "did you mean 'non-inferiority'"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        paired_test(*arguments)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 is
    # lifted to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
