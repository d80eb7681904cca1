"""Calibration errors and the temperature that makes them small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.evaluation.calibration import calibration_error, search_temperature
from jaxkd.losses import top_k_log_probs


def test_error_is_the_weighted_gap_of_the_bins():
    confidence = jnp.array([0.95, 1.0, 0.91, 0.55, 0.05])
    correct = jnp.array([True, True, False, False, True])
    # Bins (0.9, 1]: 0.953 against 2/3; (0.5, 0.6]: 0.55 against 0; (0, 0.1]: 0.05, 1.
    expected = (abs(0.95 + 1.0 + 0.91 - 2) + 0.55 + 0.95) / 5
    np.testing.assert_allclose(
        calibration_error(confidence, correct, 10), expected, rtol=1e-6
    )
    assert calibration_error(jnp.ones(3), jnp.ones(3, bool), 10) == 0


def answers(examples=4000, classes=8, too_sure=2.5):
    """Return answers that are right as often as they say, and the same too sure."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (examples, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    ids, log_probs = top_k_log_probs(jnp.asarray(logits * too_sure, jnp.float32), 5)
    return log_probs, np.asarray(ids[:, 0]) == labels


GRID = np.arange(0.5, 5.01, 0.25).tolist()


def test_finds_the_temperature_that_was_taken_away():
    log_probs, correct = answers()
    correct = jnp.asarray(correct)
    found, error = search_temperature(log_probs, correct, GRID)
    assert abs(found - 2.5) <= 0.25
    plain = calibration_error(jnp.exp(jax.nn.log_softmax(log_probs)[:, 0]), correct, 10)
    assert error < 0.02 < 0.1 < plain
    finer, finer_error = search_temperature(log_probs, correct, GRID, step=0.05)
    assert finer_error <= error
    assert round(finer / 0.05, 6).is_integer()


def test_probability_space_finds_its_own():
    log_probs, correct = answers()
    grid = [round(0.1 * i, 1) for i in range(1, 11)]
    found, error = search_temperature(
        log_probs, jnp.asarray(correct), grid, space="probability", step=0.02
    )
    assert 0.1 < found < 0.6
    for other in (0.1, 1.0):
        ends = search_temperature(
            log_probs, jnp.asarray(correct), [other], space="probability"
        )
        assert ends[1] > error + 0.1


def test_what_changes_least_wins_a_tie():
    # A fifth each, whatever the temperature.
    log_probs, correct = jnp.full((4, 5), np.log(0.2)), jnp.array([1, 0, 0, 0], bool)
    found, error = search_temperature(log_probs, correct, [0.5, 4.0, 0.9, 1.2, 0.2])
    assert (found, error) == (0.9, pytest.approx(0.05, abs=1e-5))


@pytest.mark.parametrize(
    ("examples", "grid", "message"),
    [(0, [1.0], "0 examples"), (2, [], "0 temperatures"), (2, [0.0], "above 0")],
)
def test_bad_arguments_are_named(examples, grid, message):
    with pytest.raises(ValueError, match=message):
        search_temperature(jnp.zeros((examples, 5)), jnp.zeros(examples, bool), grid)


def test_no_bins_and_no_step_are_refused():
    log_probs, correct = jnp.zeros((2, 5)), jnp.zeros(2, bool)
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        calibration_error(log_probs[:, 0], correct, 0)
    with pytest.raises(ValueError, match="step must be above 0, got 0"):
        search_temperature(log_probs, correct, [1.0], step=0.0)
