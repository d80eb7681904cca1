"""Meshes, and how a program's state and batches lie on them.

A mesh has four axes. Batches are split over ``dcn``, ``data`` and ``fsdp`` together;
the state is copied along ``dcn`` and ``data``, split along ``fsdp`` (each device holds
its share of every large array, and gathers a layer when it runs) and along ``tensor``
(layers' outputs). ``dcn`` counts slices of a pod, between which only the data centre's
network runs. XLA inserts the collectives, so the numbers do not depend on the mesh
beyond rounding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    use_abstract_mesh,
)
from jaxtyping import PyTree

from jaxkd.arguments import checked, own_check
from jaxkd.checks import unknown_name
from jaxkd.sharding.axes import declared_axes, logical_spec
from jaxkd.types import NO_AXES, Axes, Batch

AXES = ("dcn", "data", "fsdp", "tensor")
BATCH_AXES = ("dcn", "data", "fsdp")
MIN_SIZE = 2**14
"""Arrays of fewer elements are copied to every device: gathering costs more."""


@checked(data=own_check, fsdp=own_check, tensor=own_check, dcn=own_check)
@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; one of them may be -1, for all that are left."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    dcn: int = 1


MESHES = {
    "one": MeshShape(),
    "data": MeshShape(data=-1),
    "fsdp": MeshShape(fsdp=-1),
    "h100-8": MeshShape(fsdp=8),
    "v5e-8": MeshShape(fsdp=8),
    "v6e-8": MeshShape(fsdp=8),
    "v5p-64": MeshShape(fsdp=16, tensor=4),
    "v5p-128": MeshShape(fsdp=32, tensor=4),
    "v5e-256": MeshShape(fsdp=64, tensor=4),
    "v6e-256": MeshShape(fsdp=64, tensor=4),
    "2xv5e-256": MeshShape(dcn=2, fsdp=64, tensor=4),
}
"""Mesh shapes by name, from one device to two slices of a pod; a slice's is named by
its chips."""


@checked()
def make_mesh(
    shape: str | MeshShape = "data", devices: Sequence[Any] | None = None
) -> Mesh:
    """Return a mesh over devices, neighbours on it being neighbours in the machine.

    Args:
        shape: a name of `MESHES`, or devices along each axis.
        devices: to use; None for the first that the shape needs, of all processes.

    Raises:
        ValueError: an unknown name, sizes that the devices do not fill, or a batch that
            processes could not share evenly.
    """
    if isinstance(shape, str):
        if shape not in MESHES:
            raise ValueError(unknown_name("mesh", shape, MESHES))
        shape = MESHES[shape]
    found = list(jax.devices() if devices is None else devices)
    given = [shape.dcn, shape.data, shape.fsdp, shape.tensor]
    known = math.prod(size for size in given if size != -1)
    if given.count(-1) > 1 or known < 1 or min(given) < -1:
        raise ValueError(f"{shape} must have positive sizes, and -1 at most once")
    if known > len(found) or (-1 in given and len(found) % known):
        raise ValueError(
            f"{shape} needs {'a multiple of ' if -1 in given else ''}{known} devices, "
            f"but there are {len(found)}: choose another of {', '.join(MESHES)}, or "
            "give a MeshShape"
        )
    sizes = [len(found) // known if size == -1 else size for size in given]
    needed = math.prod(sizes)
    if devices is None and needed < len(found) and jax.process_count() > 1:
        raise ValueError(
            f"{shape} uses {needed} of {len(found)} devices: with several processes a "
            "mesh must use them all"
        )
    parts = math.prod(sizes[: len(BATCH_AXES)])
    if parts % jax.process_count():
        raise ValueError(
            f"{shape} splits a batch into {parts} parts, which "
            f"{jax.process_count()} processes cannot share evenly: make dcn x data x "
            "fsdp a multiple of the processes"
        )
    automatic = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in found[:needed]})
    if slices == 1:
        return jax.make_mesh(sizes, AXES, automatic, devices=found[:needed])
    if slices != shape.dcn:
        raise ValueError(
            f"{shape} is for {shape.dcn} slices, but the devices are of {slices}: set "
            "dcn to the number of slices"
        )
    within, between = (1, *sizes[1:]), (sizes[0], 1, 1, 1)
    placed = create_hybrid_device_mesh(within, between, found[:needed])
    return Mesh(placed, AXES, axis_types=automatic)


@checked()
def partition(
    path: Sequence[str], shape: tuple[int, ...], mesh: Mesh, axes: Axes, min_size: int
) -> PartitionSpec:
    """Return how an array of the state is split.

    A weight whose layer declares its axes lies as they say. Of another one ``tensor``
    takes the last axis (a weight's outputs) and ``fsdp`` the largest other one, where
    they can be divided. Arrays below ``min_size`` elements are not split.
    """
    if not shape or math.prod(shape) < min_size:
        return PartitionSpec()
    declared = declared_axes(axes, path, len(shape))
    if declared is not None:
        return logical_spec(shape, declared, mesh.shape)
    spec: list[str | None] = [None] * len(shape)
    if mesh.shape["tensor"] > 1 and shape[-1] % mesh.shape["tensor"] == 0:
        spec[-1] = "tensor"
    free = [
        axis
        for axis, size in enumerate(shape)
        if spec[axis] is None and size % mesh.shape["fsdp"] == 0
    ]
    if mesh.shape["fsdp"] > 1 and free:
        spec[max(free, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*spec)


@checked()
def state_sharding(
    state: PyTree,
    mesh: Mesh,
    axes: Axes = NO_AXES,
    min_size: int = MIN_SIZE,
) -> PyTree:
    """Return the sharding of every array of a program's state.

    Args:
        state: arrays, or their shapes (``jax.eval_shape(program.init, …)``).
        mesh: from `make_mesh`.
        axes: of the program (`Program.axes`), or of the network whose variables the
            state is (`Network.axes`).
        min_size: elements below which an array is copied to every device.
    """

    def place(path: Any, x: Any) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        return NamedSharding(mesh, partition(names, x.shape, mesh, axes, min_size))

    return jax.tree_util.tree_map_with_path(place, state)


@checked()
def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Return the function with the mesh known to the models that it traces.

    They pin their activations to it (`jaxkd.sharding.axes.constrain`).
    """

    def run(*arguments: Any) -> Any:
        with use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return run


@checked()
def batch_parts(mesh: Mesh) -> int:
    """Return into how many parts a mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@checked()
def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Return the batch split over the mesh's ``data`` and ``fsdp`` axes.

    Args:
        batch: arrays with examples on the first axis; with several processes, this
            process's examples, as `jaxkd.data.batches` gives them.
        mesh: from `make_mesh`.

    Raises:
        ValueError: the examples cannot be divided among the devices.
    """
    parts = batch_parts(mesh)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def place(path: Any, array: Any) -> jax.Array:
        if not np.ndim(array):
            return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))
        examples = np.shape(array)[0] * jax.process_count()
        if examples % parts:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} holds {examples} examples, which "
                f"the {parts} devices of the mesh's data and fsdp axes cannot share "
                f"evenly: use a batch size that is a multiple of {parts}"
            )
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))

    return jax.tree_util.tree_map_with_path(place, dict(batch))
