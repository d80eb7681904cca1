"""Keep the best of what a program trains, by a score of every step's result."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from jaxkd.arguments import checked
from jaxkd.checks import disjoint
from jaxkd.types import Batch, Metrics, Program, deployed


@flax.struct.dataclass
class BestState:
    """The state of `with_best`'s programs.

    Attributes:
        program: the program's own state.
        best: the part that was chosen, at its best score.
        score: that score.
        since: steps since then, an int32 scalar.
        steps: steps done, an int32 scalar.
    """

    program: Any
    best: Any
    score: Any
    since: Any
    steps: Any

    @property
    def deployed(self) -> Any:
        """The best."""
        return self.best


@checked()
def with_best(
    program: Program,
    score: Callable[[Any, Batch], Array],
    of: Callable[[Any], PyTree] = deployed,
) -> Program:
    """Return the program that also keeps its best weights, for early stopping.

    Every step's result is scored; a score as high as the best replaces it, so that of
    equal ones the last is kept. Stop when ``state.since`` reaches your patience.

    Args:
        program: any.
        score: ``(state, batch) ->`` a scalar that is better when higher, such as the
            accuracy on validation nodes, computed in the same compiled step.
        of: ``state -> the part to keep``; what it is trained for by default.

    Returns:
        A program whose state is a `BestState`. It adds the metric ``score``.
    """

    def init(key: PRNGKeyArray, batch: Batch) -> BestState:
        state = program.init(key, batch)
        zero = jnp.zeros((), jnp.int32)
        return BestState(state, of(state), jnp.full((), -jnp.inf), zero, zero)

    def step(state: BestState, batch: Batch) -> tuple[BestState, Metrics]:
        inner, metrics = program.step(state.program, batch)
        value = jnp.asarray(score(inner, batch), jnp.float32)
        better = value >= state.score
        best = jax.tree.map(
            lambda old, new: jnp.where(better, new, old), state.best, of(inner)
        )
        state = BestState(
            inner,
            best,
            jnp.where(better, value, state.score),
            jnp.where(better, 0, state.since + 1),
            state.steps + 1,
        )
        return state, disjoint(metrics, {"score": value})

    return Program(
        init,
        step,
        lambda state: program.frozen(state.program),
        program.axes,
        lambda state, batch: program.check(state.program, batch),
    )
