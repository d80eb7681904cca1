"""Training on a mixture that is weighted anew after every interval."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Program, data, training

SOURCES = {
    name: data.Source(name, {"label": np.zeros(size, np.int32)}, 1)
    for name, size in (("a", 6), ("b", 20), ("c", 30))
}


def step(state, batch):
    """Count the examples of each domain, and keep the last batch's places."""
    counts = jnp.bincount(batch["domain"], length=3)
    state = {"counts": state["counts"] + counts, "last": batch["index"]}
    return state, {"loss": counts[0] * 1.0}


COUNTING = Program(
    lambda key, batch: {"counts": jnp.zeros(3, jnp.int32), "last": batch["index"]}, step
)


def weights(history):
    """Only the domain drawn least so far; all at first."""
    if not history:
        return None
    counts = np.array([history[-1][name] for name in "abc"])
    return (counts == counts.min()).astype(float)


def run(folder, steps, **settings):
    asked = []

    def ask(history):
        asked.append([entry["step"] for entry in history])
        return weights(history)

    with training.Checkpoints(folder) as checkpoints:
        state, history = training.fit_intervals(
            COUNTING,
            partial(data.mixture_batches, SOURCES, 8),
            weights=ask,
            steps=steps,
            evaluate_every=3,
            evaluate=lambda state: dict(zip("abc", state["counts"], strict=True)),
            checkpoints=checkpoints,
            key=jax.random.key(0),
            **settings,
        )
    return jax.device_get(state), history, asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), 12)


def test_each_interval_has_the_weights_of_the_evaluations_before(whole):
    state, history, asked = whole
    assert asked == [[], [3], [3, 6], [3, 6, 9]]
    assert [entry["step"] for entry in history] == [3, 6, 9, 12]
    counts = np.array([[entry[name] for name in "abc"] for entry in history])
    np.testing.assert_array_equal(state["counts"], counts[-1])
    assert counts[-1].sum() == 12 * 8
    for before, after in pairwise(counts):
        least = before.argmin()
        assert (after - before).tolist() == [24 * (i == least) for i in range(3)]


def test_a_run_that_was_stopped_goes_on(tmp_path, whole):
    # Two intervals and two thirds of one more, then all of it.
    run(tmp_path, 6)
    mixture = data.mixture_batches(SOURCES, 8, weights=weights(whole[1][:2]))
    with training.Checkpoints(tmp_path) as checkpoints:
        training.fit(
            COUNTING,
            mixture,
            key=jax.random.key(0),
            steps=8,
            checkpoints=checkpoints,
        )
    state, history, _ = run(tmp_path, 12)
    for name in state:
        np.testing.assert_array_equal(state[name], whole[0][name])
    assert history == whole[1]


def test_a_run_can_be_stopped(tmp_path, whole):
    stop = lambda history: len(history) > 2  # noqa: E731
    _, history, asked = run(tmp_path, 12, stop=stop)
    assert history == whole[1][:3]
    assert asked == whole[2]


@pytest.mark.parametrize("steps", [0, 5])
def test_parts_of_an_interval_are_refused(tmp_path, steps):
    with pytest.raises(ValueError, match=f"intervals of evaluate_every, got {steps}"):
        run(tmp_path, steps)
