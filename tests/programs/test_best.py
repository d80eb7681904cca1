"""`with_best` keeps the best weights, the last of equal ones, in the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np

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
