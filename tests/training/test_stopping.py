"""Runs that end early, and runs that go on after their end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Program
from jaxkd.training import Checkpoints, fit, patience

KEY = jax.random.key(0)
BATCHES = [{"x": np.ones((2, 1), np.float32)}]
COUNT = Program(
    lambda key, batch: {"steps": jnp.zeros((), jnp.int32)},
    lambda state, batch: ({"steps": state["steps"] + 1}, {"loss": state["steps"]}),
)
SCORES = (1, 4, 3, 4, 5, 2, 3, 4, 9, 9, 9)
"""Of each evaluation; one every second step."""


def run(**options):
    settings = {
        "steps": 20,
        "evaluate": lambda state: {"score": SCORES[int(state["steps"]) // 2 - 1]},
        "evaluate_every": 2,
    }
    return fit(COUNT, BATCHES, key=KEY, **{**settings, **options})


@pytest.mark.parametrize(
    ("evaluations", "mode", "stopped"),
    [(1, "max", 6), (2, "max", 8), (3, "max", 16), (4, "max", 20), (2, "min", 6)],
)
def test_patience_counts_evaluations_since_the_first_of_the_best(
    evaluations, mode, stopped
):
    state, history = run(stop=patience("score", evaluations, mode))
    assert state["steps"] == history[-1]["step"] == stopped
    assert [entry["step"] for entry in history] == list(range(2, stopped + 1, 2))


def test_a_training_metric_can_be_watched_and_anything_can_stop():
    state, _ = run(stop=patience("train_loss", 3, "min"), evaluate=None)
    assert state["steps"] == 8
    state, _ = run(stop=lambda history: history[-1]["score"] >= 5)
    assert state["steps"] == 10


@pytest.mark.parametrize("killed", [4, 16, 20])
def test_a_stopped_run_stays_stopped_and_more_patience_goes_on(tmp_path, killed):
    """Whether the first run ended before it was stopped or was stopped."""
    whole = run(stop=patience("score", 3))

    def resume(**options):
        with Checkpoints(tmp_path) as checkpoints:
            return run(checkpoints=checkpoints, **options)

    resume(steps=killed, stop=patience("score", 3))
    assert resume(stop=patience("score", 3)) == whole
    assert resume(stop=patience("score", 3)) == whole
    assert resume(stop=patience("score", 4)) == run(stop=patience("score", 4))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="evaluations must be at least 1, got 0"):
        patience("score", 0)
    with pytest.raises(ValueError, match="unknown metric 'scores': did you mean 'sc"):
        run(stop=patience("scores", 1))
    with pytest.raises(ValueError, match="stop is asked after evaluations: give eval"):
        run(stop=patience("score", 1), evaluate_every=None)


@pytest.mark.usefixtures("unchecked_shapes")
def test_another_mode_is_refused():
    with pytest.raises(ValueError, match=r"unknown mode 'maximum'.*Valid: max, min"):
        patience("score", 1, "maximum")


def test_nan_is_never_the_best():
    nan = float("nan")
    stop = patience("score", 2)
    for scores, stopped in (
        ((1, 2, nan, 3), False),
        ((3, nan, 2), True),
        ((nan, 1, 2, 3), False),
        ((nan, nan, nan), True),
    ):
        assert stop([{"score": score} for score in scores]) is stopped
    assert not patience("score", 2, "min")([{"score": x} for x in (3, 2, nan, 1)])


def test_the_best_checkpoint_outlives_an_evaluation_that_is_nan(tmp_path):
    scores = {2: 4.0, 4: float("nan"), 6: 3.0}

    def evaluate(state):
        return {"score": scores[int(state["steps"])]}

    with Checkpoints(tmp_path, keep=1, best="score") as checkpoints:
        run(steps=6, evaluate=evaluate, checkpoints=checkpoints)
        assert (checkpoints.best, checkpoints.latest) == (2, 6)


def test_a_best_metric_that_no_evaluation_has_is_named(tmp_path):
    with (
        Checkpoints(tmp_path, best="scores") as checkpoints,
        pytest.raises(ValueError, match=r"best metric 'scores': did you mean 'score'"),
    ):
        run(checkpoints=checkpoints)
    with Checkpoints(tmp_path / "own", best="train_loss") as checkpoints:
        run(steps=4, checkpoints=checkpoints)


@pytest.mark.parametrize("found", [{3: 1.0}, {"a": np.ones(2)}, {"a": [1.0]}])
def test_an_evaluation_of_something_else_is_named(found):
    with pytest.raises(ValueError, match="evaluate must return a number for each name"):
        run(evaluate=lambda state: found)


def test_a_configuration_is_what_json_holds(tmp_path):
    with pytest.raises(ValueError, match=r"config must be what JSON .* set"):
        Checkpoints(tmp_path, config={"a": {1}})
    for steps in (2, 4):  # NaN is no other value than NaN.
        config = {"rate": float("nan")}
        with Checkpoints(tmp_path, config=config) as checkpoints:
            run(steps=steps, checkpoints=checkpoints)
