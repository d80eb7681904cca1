"""Parts of a program's state as they were; what no step changes is not held twice."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from jaxkd.arguments import checked
from jaxkd.types import Program


@checked()
def without_frozen(program: Program, state: Any, of: Callable[[Any], PyTree]) -> PyTree:
    """Return a part of a state with None for the arrays that no step changes.

    Args:
        program: whose state it is.
        state: of the program.
        of: ``state -> the part``.
    """
    frozen = {id(x) for x in jax.tree.leaves(program.frozen(state))}
    return jax.tree.map(lambda x: None if id(x) in frozen else x, of(state))


@checked()
def map_kept(
    function: Callable[[Array, Array], Array], kept: PyTree, now: PyTree
) -> PyTree:
    """Return ``function(kept, now)`` of every array, and None for None.

    Args:
        function: of two arrays.
        kept: of `without_frozen`.
        now: the same part of the present state.
    """
    return jax.tree.map(
        lambda x, y: None if x is None else function(x, y), kept, now, is_leaf=_is_none
    )


@checked()
def completed(kept: PyTree, now: PyTree) -> PyTree:
    """Return a part that was kept, with its present arrays in place of None.

    Args:
        kept: of `without_frozen`.
        now: the same part of the present state.
    """
    return jax.tree.map(lambda x, y: y if x is None else x, kept, now, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None
