"""A round of KD-AIF: whom its weights serve, in which order, and how they move."""

import numpy as np
import pytest

from jaxkd.papers.kdaif import Models, kd_aif_round

SCORES = np.array([-1.0, 0.0, 2.0])


def run(mode, weights=None, **parts):
    calls = []

    def distil(models, weights):
        calls.append(("distil", models, np.asarray(weights)))
        return "student 1"

    def score(models):
        calls.append(("score", models))
        return SCORES

    def retrain(models, weights):
        calls.append(("retrain", models, np.asarray(weights)))
        return "teacher 1"

    models = Models("student 0", "teacher 0")
    weights = np.array([0.5, 1.0, 1.5]) if weights is None else weights
    parts = {"retrain": retrain, "weigh": lambda s: 2 - s, **parts}
    found = kd_aif_round(
        models, weights, distil=distil, score=score, mode=mode, **parts
    )
    return found, calls


@pytest.mark.parametrize("mode", ["S", "T", "TS"])
def test_a_mode_says_whom_the_weights_serve(mode):
    found, calls = run(mode)
    served = [0.5, 1.0, 1.5] if "S" in mode else [1, 1, 1]
    assert calls[0][1] == Models("student 0", "teacher 0")
    np.testing.assert_array_equal(calls[0][2], served)
    assert calls[1][1] == Models("student 1", "teacher 0")
    np.testing.assert_array_equal(found.weights, 2 - SCORES)
    np.testing.assert_array_equal(found.scores, SCORES)
    teacher = "teacher 1" if "T" in mode else "teacher 0"
    assert found.models == Models("student 1", teacher)
    if "T" in mode:
        np.testing.assert_array_equal(calls[2][2], found.weights)


def test_momentum_keeps_a_part_of_the_old_weights():
    found, _ = run("S", momentum=0.25)
    old = np.array([0.5, 1.0, 1.5])
    np.testing.assert_allclose(found.weights, 0.75 * old + 0.25 * (2 - SCORES))


def test_what_does_not_fit_is_named(unchecked_shapes):
    for mode in ("T", "TS"):
        with pytest.raises(ValueError, match="retrain is None, but mode 'T"):
            run(mode, retrain=None)
    with pytest.raises(ValueError, match="unknown mode 'TX'"):
        run("TX")
    with pytest.raises(ValueError, match=r"shape \(3,\), but weights has shape \(2,\)"):
        run("S", weights=np.ones(2))
