"""`with_best` keeps the best weights, the last of equal ones, in the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Program
from jaxkd.programs import with_best


def test_the_last_of_the_best_is_kept():
    def step(state, batch):
        return {"student": state["student"] + 1}, {"loss": state["student"] * 1.0}

    counting = Program(lambda key, batch: {"student": jnp.zeros(())}, step)
    scores = jnp.array([0.1, 0.5, 0.3, 0.5, 0.2, 0.4])

    def score(state, batch):
        return batch["scores"][state["student"].astype(int) - 1]

    program = with_best(counting, score, of=lambda state: state["student"])
    batch = {"scores": scores}
    state = program.init(jax.random.key(0), batch)
    step = jax.jit(program.step)
    seen = []
    for _ in scores:
        state, metrics = step(state, batch)
        seen.append((float(state.best), int(state.since)))
        np.testing.assert_allclose(metrics["score"], scores[len(seen) - 1])
    assert seen == [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2)]
    assert int(state.steps) == 6
    assert float(state.score) == 0.5
    assert float(state.program["student"]) == 6
    assert set(metrics) == {"loss", "score"}


def test_a_validation_set_is_scored_every_so_many_steps():
    def step(state, batch):
        moved = state["student"] + batch["x"].mean()
        return {"student": moved}, {"loss": jnp.zeros(())}

    program = Program(lambda key, batch: {"student": jnp.zeros(())}, step)

    def score(state, batch):
        return -((state["student"] - batch["x"]) ** 2).mean()

    held = {"x": np.full(3, 2.0, np.float32)}
    program = with_best(
        program, score, lambda state: state["student"], validation=held, every=2
    )
    batch = {"x": np.ones(5, np.float32)}
    state = program.init(jax.random.key(0), batch)
    step = jax.jit(program.step)
    seen = []
    for _ in range(6):  # Steps 1, 3 and 5 are scored: 3 is as far from 2 as 1 is.
        state, metrics = step(state, batch)
        seen.append((float(state.best), float(metrics["score"]), int(state.since)))
    assert seen == [
        (1, -1, 0),
        (1, -1, 1),
        (3, -1, 0),
        (3, -1, 1),
        (3, -9, 2),
        (3, -9, 3),
    ]
    # Checkpoints keep its fingerprint.
    (kept,) = jax.tree.leaves(program.frozen(state))
    np.testing.assert_array_equal(kept, held["x"])
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        with_best(program, score, every=0)
    with pytest.raises(ValueError, match="the batch is empty"):
        with_best(program, score, validation={"x": np.zeros(0)})
