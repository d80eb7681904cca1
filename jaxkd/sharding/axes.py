"""Logical axes: what an axis of a weight or activation means, not where it lies.

Layers `declare` the axes of their weights, which `Network.axes` gathers by path, and
pin activations with `constrain`; `RULES` says over which axes of the mesh each is
split. XLA fills in the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxkd.arguments import checked
from jaxkd.types import Axes

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("dcn", "data", "fsdp"),
    "length": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
    "vocabulary": ("tensor",),
    "expert": ("tensor",),
}
"""Axes of the mesh by logical axis. ``embed`` is a weight's axis of the residual
stream's features; an activation's is not split, and is called None. ``length`` is of
what is kept between blocks, where every token is for itself (Korthikanti et al. 2022,
arXiv:2205.05198). Experts lie over the devices that have the same tokens
(`jaxkd.models.parts.moe`)."""

QUANTIZED = ("codes", "scale", "zero")
"""Parts of a quantised weight, which have its axes."""


def declare(*axes: str | None) -> dict[str, Any]:
    """Return Flax's metadata of a weight by which a layer says what its axes mean.

    As in ``nnx.Param(table, **declare("vocabulary", "embed"))``, or of a layer's weight
    ``nnx.Linear(8, 32, kernel_metadata=declare("embed", "hidden"), rngs=rngs)``. Flax
    itself shall not place it: these are no axes of a mesh.

    Args:
        *axes: the logical axis of each of its axes, or None for one that is not split.
    """
    return {"out_sharding": axes, "eager_sharding": False}


@checked()
def declared_axes(
    axes: Axes, path: Sequence[str], ndim: int
) -> tuple[str | tuple[str, ...] | None, ...] | None:
    """Return what is declared of an array of a state, or None if nothing is.

    An optimizer's moments, an ensemble's members and quantised weights have paths that
    end as the weight's own, which is how they are known.

    Args:
        axes: by the ends of paths; the longest that fits counts.
        path: of the array.
        ndim: of the array; axes beyond those declared are of weights stacked.
    """
    path = tuple(path)
    ends = [path[start:] for start in range(len(path))]
    if path and path[-1] in QUANTIZED:
        ends += [path[start:-1] for start in range(len(path) - 1)]
    found = next((axes[end] for end in ends if end in axes), ())
    if not found or len(found) > ndim:
        return None
    return (None,) * (ndim - len(found)) + tuple(found)


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
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


def constrain_batch(x: Array) -> Array:
    """Pin an array of examples: each where its part of the batch lies, and whole."""
    return constrain(x, "batch", *[None] * (x.ndim - 1))


@checked()
def logical_spec(
    shape: Sequence[int],
    axes: Sequence[str | tuple[str, ...] | None],
    mesh: Mapping[str, int],
) -> PartitionSpec:
    """Return where the axes of an array lie.

    Args:
        shape: of the array.
        axes: their logical axes, or axes of the mesh, one or several together. Those of
            the mesh that one axis is split over are not there for later ones.
        mesh: devices along each of its axes.
    """
    placed: list[tuple[str, ...] | None] = []
    free = set(mesh)
    for size, axis in zip(shape, axes, strict=True):
        names = (axis,) if isinstance(axis, str) else axis or ()
        over = tuple(
            part for name in names for part in RULES.get(name, (name,)) if part in free
        )
        parts = 1
        for name in over:
            parts *= mesh[name]
        if parts > 1 and size % parts == 0:
            placed.append(over)
            free -= set(over)
        else:
            placed.append(None)
    return PartitionSpec(*placed)


@checked()
def on_devices(
    function: Callable[..., Array],
    arrays: Sequence[Array | None],
    axes: Sequence[Sequence[str | None]],
) -> Array:
    """Return ``function(*arrays)``, computed by every device from its own part.

    For kernels, which XLA cannot split by itself; without a mesh it is the plain call.

    Args:
        function: what a device does with its part; the result lies as the first array.
        arrays: to split, or None.
        axes: the logical axes of each array. Those of one name must all be divisible,
            or none is split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    whole = {
        name
        for array, names in zip(arrays, axes, strict=True)
        if array is not None
        for i, name in enumerate(names)
        if name and logical_spec(array.shape, names, mesh.shape)[i] is None
    }
    specs = [
        None
        if array is None
        else logical_spec(
            array.shape,
            [None if name in whole else name for name in names],
            mesh.shape,
        )
        for array, names in zip(arrays, axes, strict=True)
    ]
    # Kernels do not say over which axes their results vary, and nothing is sent here.
    run = jax.shard_map(
        function, in_specs=tuple(specs), out_specs=specs[0], check_vma=False
    )
    return run(*arrays)
