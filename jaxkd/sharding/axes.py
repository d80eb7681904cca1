"""Logical axes: what an axis of a weight or activation means, not where it lies.

A model's weights are known by their layers' names, which optimizer states share, and a
model pins its activations with `constrain`; `RULES` says over which axes of the mesh
each is split. XLA fills in the rest.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("dcn", "data", "fsdp"),
    "length": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
    "vocabulary": ("tensor",),
}
"""Axes of the mesh by logical axis. ``embed`` is a weight's axis of the residual
stream's features; an activation's is not split, and is called None. ``length`` is of
what is kept between blocks, where every token is for itself (Korthikanti et al. 2022,
arXiv:2205.05198)."""

PARAMETERS: Mapping[tuple[str, str], tuple[str | None, ...]] = {
    ("embed", "embedding"): ("vocabulary", "embed"),
    ("head", "kernel"): ("embed", "vocabulary"),
    ("embedder", "kernel"): ("embed", None),
    ("query", "kernel"): ("embed", "heads"),
    ("key", "kernel"): ("embed", "heads"),
    ("value", "kernel"): ("embed", "heads"),
    ("qkv", "kernel"): ("embed", "heads"),
    ("relative", "embedding"): (None, "heads"),
    ("in_projection", "kernel"): ("embed", "heads"),
    ("conv", "kernel"): (None, None, "heads"),
    ("out", "kernel"): ("heads", "embed"),
    ("projection", "kernel"): ("heads", "embed"),
    ("gate", "kernel"): ("embed", "hidden"),
    ("up", "kernel"): ("embed", "hidden"),
    ("fc1", "kernel"): ("embed", "hidden"),
    ("down", "kernel"): ("hidden", "embed"),
    ("fc2", "kernel"): ("hidden", "embed"),
    ("cache", "key"): ("batch", "heads", None, None),
    ("cache", "value"): ("batch", "heads", None, None),
}
"""Logical axes of weights, and of what a cache holds, by the last two parts of their
path; a weight of more axes has those of stacked layers before them."""


QUANTIZED = ("codes", "scale", "zero")
"""Parts of a quantised weight, which have its axes."""


def parameter_axes(path: Sequence[str], ndim: int) -> tuple[str | None, ...] | None:
    """Return a weight's logical axes, or None for one that has no name here.

    Args:
        path: of the array in the state, its last two parts being layer and weight.
        ndim: of the array.
    """
    if path and path[-1] in QUANTIZED:
        path = path[:-1]
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


def constrain_batch(x: Array) -> Array:
    """Pin an array of examples: each where its part of the batch lies, and whole."""
    return constrain(x, "batch", *[None] * (x.ndim - 1))


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
