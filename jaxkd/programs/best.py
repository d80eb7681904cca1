"""Keep the best of what a program trains, by a score of every step's result."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from jaxkd.arguments import checked, count
from jaxkd.checks import check_batch, disjoint
from jaxkd.programs.kept import completed, map_kept, without_frozen
from jaxkd.types import Batch, Metrics, Program, deployed


@flax.struct.dataclass
class BestState:
    """The state of `with_best`'s programs.

    Attributes:
        program: the program's own state.
        kept: the part that was chosen, at its best score; None for arrays of it that
            are frozen.
        score: that score.
        since: steps since then, an int32 scalar.
        steps: steps done, an int32 scalar.
        last: the last score.
        validation: what is scored on, if not each step's batch.
        of: ``state -> the part``, static.
    """

    program: Any
    kept: Any
    score: Any
    since: Any
    steps: Any
    last: Any = None
    validation: Any = None
    of: Callable[[Any], PyTree] = flax.struct.field(pytree_node=False, default=deployed)

    @property
    def best(self) -> Any:
        """The part that was chosen, at its best score."""
        return completed(self.kept, self.of(self.program))

    @property
    def deployed(self) -> Any:
        """The best."""
        return self.best


@checked(every=count)
def with_best(
    program: Program,
    score: Callable[[Any, Batch], Array],
    of: Callable[[Any], PyTree] = deployed,
    *,
    validation: Batch | None = None,
    every: int = 1,
) -> Program:
    """Return the program that also keeps its best weights, for early stopping.

    The first and every so many steps' result is scored; a score as high as the best
    replaces it, so that of equal ones the last is kept. Stop when ``state.since``
    reaches your patience.

    Args:
        program: any.
        score: ``(state, batch) ->`` a scalar that is better when higher, such as the
            accuracy on validation nodes, computed in the same compiled step.
        of: ``state -> the part to keep``; what it is trained for by default.
        validation: the batch to score on, one that fits the memory at once; None for
            the batch of each step, which holds nodes to validate on, or else is what
            was just trained on.
        every: steps from a score to the next.

    Returns:
        A program whose state is a `BestState`. It adds the metric ``score``, the last.

    Raises:
        ValueError: ``every`` below 1, or a validation batch that is none.
    """
    if validation is not None:
        check_batch(validation)

    def init(key: PRNGKeyArray, batch: Batch) -> BestState:
        state = program.init(key, batch)
        zero = jnp.zeros((), jnp.int32)
        worst = jnp.full((), -jnp.inf, jnp.float32)
        held = jax.tree.map(jnp.asarray, validation)
        kept = without_frozen(program, state, of)
        return BestState(state, kept, worst, zero, zero, worst, held, of)

    def step(state: BestState, batch: Batch) -> tuple[BestState, Metrics]:
        inner, metrics = program.step(state.program, batch)
        held = batch if validation is None else state.validation
        due = state.steps % every == 0

        def scored() -> Array:
            return jnp.asarray(score(inner, held), jnp.float32)

        value = jax.lax.cond(due, scored, lambda: state.last) if every > 1 else scored()
        better = due & (value >= state.score)
        best = map_kept(
            lambda old, new: jnp.where(better, new, old), state.kept, of(inner)
        )
        state = BestState(
            inner,
            best,
            jnp.where(better, value, state.score),
            jnp.where(better, 0, state.since + 1),
            state.steps + 1,
            value,
            state.validation,
            of,
        )
        return state, disjoint(metrics, {"score": value})

    def frozen(state: BestState) -> PyTree:
        return {
            "program": program.frozen(state.program),
            "validation": state.validation,
        }

    return Program(
        init,
        step,
        frozen,
        program.axes,
        lambda state, batch: program.check(state.program, batch),
    )
