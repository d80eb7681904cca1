"""Logical axes: what an axis of a weight or activation means, not where it lies.

A model's weights are known by their layers' names, which optimizer states share, and a
model pins its activations with `constrain`; `RULES` says over which axes of the mesh
each is split. XLA fills in the rest.
"""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
    "vocabulary": ("tensor",),
}
"""Axes of the mesh by logical axis. ``embed`` is a weight's axis of the residual
stream's features; an activation's is not split, and is called None."""

PARAMETERS: Mapping[tuple[str, str], tuple[str | None, ...]] = {
    ("embed", "embedding"): ("vocabulary", "embed"),
    ("head", "kernel"): ("embed", "vocabulary"),
    ("query", "kernel"): ("embed", "heads"),
    ("key", "kernel"): ("embed", "heads"),
    ("value", "kernel"): ("embed", "heads"),
    ("qkv", "kernel"): ("embed", "heads"),
    ("out", "kernel"): ("heads", "embed"),
    ("projection", "kernel"): ("heads", "embed"),
    ("gate", "kernel"): ("embed", "hidden"),
    ("up", "kernel"): ("embed", "hidden"),
    ("fc1", "kernel"): ("embed", "hidden"),
    ("down", "kernel"): ("hidden", "embed"),
    ("fc2", "kernel"): ("hidden", "embed"),
}
"""Logical axes of weights by the last two parts of their path; a weight of more axes
has those of stacked layers before them."""


def parameter_axes(path: Sequence[str], ndim: int) -> tuple[str | None, ...] | None:
    """Return a weight's logical axes, or None for one that has no name here.

    Args:
        path: of the array in the state, its last two parts being layer and weight.
        ndim: of the array.
    """
    axes = PARAMETERS.get((path[-2], path[-1])) if len(path) > 1 else None
    if axes is None or ndim < len(axes):
        return None
    return (None,) * (ndim - len(axes)) + axes


def constrain(x: Array, *axes: str | None) -> Array:
    """Pin an activation's place on the mesh; without a mesh nothing happens.

    Args:
        x: any array.
        *axes: the logical axis of each of its axes, or None for one that is not split.
            An axis that its mesh axes do not divide is not split either.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, logical_spec(x.shape, axes, mesh.shape))


def logical_spec(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mapping[str, int]
) -> PartitionSpec:
    """Return where the axes of an array lie.

    Args:
        shape: of the array.
        axes: their logical axes.
        mesh: devices along each of its axes.
    """
    placed: list[tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        over = tuple(name for name in RULES.get(axis or "", ()) if name in mesh)
        parts = 1
        for name in over:
            parts *= mesh[name]
        placed.append(over if parts > 1 and size % parts == 0 else None)
    return PartitionSpec(*placed)
