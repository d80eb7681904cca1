"""Weights that a user has, in whatever form, as a network's variables."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from jaxkd.adapters.flax_nnx import split_module
from jaxkd.types import Variables

Path = tuple[str, ...]


def as_variables(given: Any, expected: Variables) -> Variables:
    """Return weights as the variables of a network, each in its place.

    Args:
        given: a network's variables; Linen's, ``{"params", "batch_stats", …}``; the
            parameters alone, where the network has nothing else; an ``nnx.State``; or
            an ``nnx.Module``.
        expected: the network's variables, or their shapes.

    Raises:
        ValueError: an array is missing, left over, of another shape, or of integers or
            complex numbers in place of floats.
    """
    if isinstance(given, nnx.Module):
        params, stats = split_module(given)
        given = {"params": params, "stats": stats}
    elif isinstance(given, nnx.State):
        given = _sorted(given, expected)
    elif isinstance(given, Mapping) and set(given) != set(expected):
        if "params" in given:
            rest = {name: tree for name, tree in given.items() if name != "params"}
            given = {"params": given["params"], "stats": rest}
        else:
            given = {"params": given, "stats": {}}
    if not isinstance(given, Mapping):
        raise ValueError(
            f"variables is a {type(given).__name__}: give a network's variables, "
            "Linen's, the parameters alone, an nnx.State or an nnx.Module"
        )
    found, wanted = _flat(given), _flat(expected)
    problems = [f"{_name(path)} is missing" for path in wanted if path not in found]
    problems += [f"{_name(path)} has no place" for path in found if path not in wanted]
    for path in wanted.keys() & found.keys():
        # A list of numbers is several arrays, as in the variables of plain functions.
        shapes = [jax.tree.map(np.shape, flat[path]) for flat in (found, wanted)]
        if shapes[0] != shapes[1]:
            problems.append(
                f"{_name(path)} has shape {shapes[0]!r:.80}, not {shapes[1]}"
            )
        elif (kinds := _kinds(found[path])) != (right := _kinds(wanted[path])):
            problems.append(f"{_name(path)} is of {kinds}, not of {right}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"variables are not this network's: {'; '.join(problems[:5])}{more}. Use "
            "those of a network made by the same constructor with the same arguments"
        )
    return _placed(expected, found)


def _sorted(state: Any, expected: Variables) -> Variables:
    """Return an NNX state's values as parameters and other state; no random numbers."""
    stats = _flat(expected.get("stats", {}))
    parts: dict[str, dict[tuple[str, ...], Any]] = {"params": {}, "stats": {}}
    for path, value in nnx.to_flat_state(state):
        if not isinstance(value, nnx.RngState):
            names = tuple(map(str, path))
            parts["stats" if names in stats else "params"][names] = value
    return {part: unflatten_dict(flat) for part, flat in parts.items()}


def _flat(tree: Any, path: Path = ()) -> dict[Path, Any]:
    """Return what is in nested mappings by path, positions in lists as text."""
    if isinstance(tree, nnx.State):
        tree = nnx.to_pure_dict(tree)
    if not isinstance(tree, Mapping):
        return {path: tree.get_value() if isinstance(tree, nnx.Variable) else tree}
    flat: dict[Path, Any] = {}
    for name, branch in tree.items():
        flat |= _flat(branch, (*path, str(name)))
    return flat


def _placed(expected: Any, found: Mapping[Path, Any], path: Path = ()) -> Any:
    if not isinstance(expected, Mapping):
        return found[path]
    return {
        name: _placed(branch, found, (*path, name)) for name, branch in expected.items()
    }


def _kinds(tree: Any) -> list[str]:
    """Return of what numbers arrays are; floats of any precision are floats."""
    dtypes = [
        leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        for leaf in jax.tree.leaves(tree)
    ]
    return ["floats" if jnp.issubdtype(x, jnp.floating) else str(x) for x in dtypes]


def _name(path: Path) -> str:
    return "/".join(path)
