"""Meshes, and how a program's state and batches lie on them."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxkd.types import Batch


def data_mesh(devices: int | None = None) -> Mesh:
    """Return a mesh with one axis, ``data``: batches are split, the state is copied.

    Args:
        devices: how many to use; None for all.

    Raises:
        ValueError: more devices than there are.
    """
    found = jax.devices()
    devices = len(found) if devices is None else devices
    if not 1 <= devices <= len(found):
        raise ValueError(f"devices must be 1 to {len(found)}, got {devices}")
    return Mesh(np.array(found[:devices]), ("data",))


def shard_state(state: PyTree, mesh: Mesh) -> PyTree:
    """Return the state copied to every device of the mesh."""
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Return the batch split over the mesh's ``data`` axis.

    Raises:
        ValueError: the examples cannot be divided among the devices.
    """
    devices = mesh.shape["data"]
    for name, array in batch.items():
        if np.shape(array)[0] % devices:
            raise ValueError(
                f"batch[{name!r}] holds {np.shape(array)[0]} examples, which the "
                f"{devices} devices of the mesh's data axis cannot share evenly: use a "
                f"batch size that is a multiple of {devices}"
            )
    return jax.device_put(dict(batch), NamedSharding(mesh, PartitionSpec("data")))
