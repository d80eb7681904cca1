"""Exponential moving averages of what a program trains."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.arguments import checked, fraction
from jaxkd.losses.basics import as_float
from jaxkd.programs.kept import completed, map_kept, without_frozen
from jaxkd.types import Batch, Metrics, Program, deployed


@flax.struct.dataclass
class AveragedState:
    """The state of `with_average`'s programs.

    Attributes:
        program: the averaged program's own state.
        moving: the moving average of the part that was chosen; None for arrays of it
            that are frozen.
        of: ``state -> the part``, static.
    """

    program: Any
    moving: Any
    of: Callable[[Any], PyTree] = flax.struct.field(pytree_node=False, default=deployed)

    @property
    def average(self) -> Any:
        """The part that was chosen: its moving average, and what is frozen."""
        return completed(self.moving, self.of(self.program))

    @property
    def deployed(self) -> Any:
        """The average."""
        return self.average


@checked(decay=fraction)
def with_average(
    program: Program,
    decay: float,
    of: Callable[[Any], PyTree] = deployed,
) -> Program:
    """Return the program that also keeps an exponential moving average (EMA).

    After every step, average ← decay · average + (1 − decay) · value, from the initial
    value on, in float32 whatever the values are: in bfloat16 the sum would be rounded
    back to the old average. Integers are copied. What is frozen is not averaged, nor
    held twice. Evaluate and export ``state.average``.

    Args:
        program: any.
        decay: in [0, 1); 0.999 averages over about the last 1,000 steps.
        of: ``state -> the part to average``; what it is trained for by default.

    Raises:
        ValueError: a decay out of range.
    """

    def init(key: PRNGKeyArray, batch: Batch) -> AveragedState:
        state = program.init(key, batch)
        return AveragedState(
            state, jax.tree.map(wide, without_frozen(program, state, of)), of
        )

    def wide(x: jax.Array) -> jax.Array:
        return as_float(x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return decay * old + (1 - decay) * as_float(new)

    def step(state: AveragedState, batch: Batch) -> tuple[AveragedState, Metrics]:
        inner, metrics = program.step(state.program, batch)
        averaged = map_kept(average, state.moving, of(inner))
        return AveragedState(inner, averaged, of), metrics

    return Program(
        init,
        step,
        lambda state: program.frozen(state.program),
        program.axes,
        lambda state, batch: program.check(state.program, batch),
    )
