"""A network's variables from and to a folder's tensors, array by array.

Every array is read straight into its place on the mesh: a process reads the slices of
its own devices, and beside the model the host holds one device's slice of one array.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from jaxkd.arguments import checked
from jaxkd.interop.families import family_writing
from jaxkd.interop.families.base import Family, Place, Source
from jaxkd.interop.shards import Shards
from jaxkd.network import Network
from jaxkd.sharding.mesh import state_sharding
from jaxkd.types import Variables


@checked()
def network_shapes(network: Network) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a network's arrays, by paths such as ``params/a/kernel``."""
    return _flat(jax.eval_shape(network.init, jax.random.key(0)))


@checked()
def network_family(network: Network) -> Family | None:
    """Return the family whose names a network's weights have in a folder.

    That of the folder that it was read from goes first.

    Args:
        network: with a spec.

    Returns:
        None if transformers has no such model.
    """
    assert network.spec is not None
    said = network.origin.config if network.origin else {}
    architecture = (said.get("architectures") or [None])[0]
    return family_writing(*network.spec, architecture)


@checked()
def network_sources(network: Network, family: Family | None) -> dict[str, Source]:
    """Return where a network's arrays are in a file.

    Args:
        network: with a spec.
        family: None for the library's own format, which has them by their paths.
    """
    if family is None:
        return {path: Source((path,)) for path in network_shapes(network)}
    assert network.spec is not None
    return family.tensors(network.spec[1])


@checked()
def tensor_shapes(
    sources: Mapping[str, Source], arrays: Mapping[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape and dtype of every tensor that the arrays make up, by name.

    Args:
        sources: of the arrays, by their paths.
        arrays: or their shapes.
    """
    found = {}
    for path, array in arrays.items():
        source = sources[path]
        whole = np.broadcast_to(np.int8(0), array.shape)  # It takes no memory.
        for name, place in source.places(array.shape).items():
            piece = whole[(*place, ...)]
            if source.share[1] > 1:  # Beside ours the tensor has others'.
                width = int(piece.shape[-1] * source.share[1])
                piece = np.broadcast_to(np.int8(0), (*piece.shape[:-1], width))
            shape = source.theirs([piece]).shape
            found[name] = jax.ShapeDtypeStruct(shape, array.dtype)
    return found


@checked()
def read_variables(
    network: Network,
    family: Family | None,
    shards: Shards,
    mesh: Mesh | None,
    dtype: Any,
) -> Variables:
    """Return a network's variables from a folder's tensors.

    Args:
        network: to read for.
        family: whose names and layouts the tensors have; None for the library's own.
        shards: the folder's.
        mesh: to place the arrays on; None for the default device.
        dtype: of the floating-point arrays; None for the files'.

    Raises:
        ValueError: tensors are missing, left over or of another shape.
    """
    shapes, sources = network_shapes(network), network_sources(network, family)
    names = _matched(tensor_shapes(sources, shapes), family, shards)

    def tensor(name: str, index: Any) -> np.ndarray:
        return shards.read(names[name], index)

    def read(path: str, sharding: Any) -> jax.Array:
        source, shape = sources[path], shapes[path].shape
        kinds = [shards.tensors[names[name]].dtype for name in source.places(shape)]
        kind = jax.dtypes.canonicalize_dtype(jnp.result_type(*kinds))
        if dtype is not None and jnp.issubdtype(kind, jnp.floating):
            kind = jnp.dtype(dtype)

        def part(place: Place) -> np.ndarray:
            return source.read(place, shape, kind, tensor)

        if sharding is None:
            return jax.device_put(part(_place((), shape)), may_alias=True)
        return _on_mesh(shape, sharding, part)

    placed: dict[str, Any] = {}
    if mesh is not None:
        tree = unflatten_dict(shapes, sep="/")
        placed = _flat(state_sharding(tree, mesh, network.axes))
    arrays = {path: read(path, placed.get(path)) for path in shapes}
    return {"params": {}, "stats": {}, **unflatten_dict(arrays, sep="/")}


def _on_mesh(
    shape: tuple[int, ...], sharding: Any, part: Callable[[Place], np.ndarray]
) -> jax.Array:
    """Return an array of parts, of which the host holds one at a time."""
    devices: dict[Place, list[Any]] = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        devices[_place(index, shape)].append(device)
    arrays = []
    for place, holders in devices.items():
        held = part(place)
        copies = [jax.device_put(held, device) for device in holders]
        arrays += jax.block_until_ready(copies)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _place(index: tuple[slice, ...], shape: tuple[int, ...]) -> Place:
    """Return an index with a start and a stop on every axis."""
    full = (*index, *(slice(None),) * (len(shape) - len(index)))
    return tuple(
        slice(*at.indices(size)[:2]) for at, size in zip(full, shape, strict=True)
    )


def _matched(
    wanted: Mapping[str, jax.ShapeDtypeStruct], family: Family | None, shards: Shards
) -> dict[str, str]:
    """Return the file's name of every tensor, after checking what the file has."""

    def plain(name: str) -> str:
        for pattern, replacement in () if family is None else family.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    found = {plain(name): name for name in shards.tensors}
    names = {name: found[plain(name)] for name in wanted if plain(name) in found}
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(f"{shards.folder} lacks {_listed(missing)} {_REMEDY}")
    ignored = () if family is None else family.ignored
    extra = set(shards.tensors) - set(names.values())
    extra = [n for n in sorted(extra) if not any(re.fullmatch(p, n) for p in ignored)]
    if extra:
        raise ValueError(
            f"{shards.folder} has {_listed(extra)} for which the model has no place "
            f"{_REMEDY}"
        )
    for name, expected in wanted.items():
        given = shards.tensors[names[name]].shape
        if given != expected.shape:
            raise ValueError(
                f"{shards.folder}: {names[name]} has shape {given}, but the model has "
                f"{expected.shape} there {_REMEDY}"
            )
    return names


_REMEDY = "(is config.json of these weights, and are the arguments?)"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@checked()
def check_variables(network: Network, variables: Variables) -> dict[str, Any]:
    """Return the variables by their paths.

    Raises:
        ValueError: they are not the network's.
    """
    expected, given = network_shapes(network), _flat(variables)
    for name in sorted({*expected, *given}):
        shapes = [
            tree[name].shape if name in tree else None for tree in (expected, given)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"variables: {name} has shape {shapes[1]}, but the network has "
                f"{shapes[0]} there (None: absent). Use the network they were trained "
                "with"
            )
    return given


@checked()
def tensor_reader(
    sources: Mapping[str, Source], arrays: Mapping[str, Any]
) -> Callable[[str], np.ndarray]:
    """Return ``name -> that tensor of the arrays``, in host memory.

    Args:
        sources: of the arrays, by their paths.
        arrays: by their paths; may be spread over several processes.
    """
    parts: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for path, array in sorted(arrays.items(), key=lambda item: sources[item[0]].share):
        for name, place in sources[path].places(array.shape).items():
            parts[name].append((path, place))

    def part(path: str, place: Place) -> np.ndarray:
        array = arrays[path]
        stacked = sources[path].stacked
        for axis in range(stacked):  # The host takes one layer, or expert, only.
            array = jax.lax.dynamic_slice_in_dim(array, place[axis].start, 1, axis)
        place = (*[slice(0, 1)] * stacked, *place[stacked:])
        return on_host(array)[(*place, ...)]

    def read(name: str) -> np.ndarray:
        source = sources[parts[name][0][0]]
        return source.theirs([part(*where) for where in parts[name]])

    return read


def on_host(array: Any) -> np.ndarray:
    """Return all of an array, of which other processes may have parts."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return process_allgather(array, tiled=True)
    return np.asarray(array)


@checked()
def nbytes(tensor: jax.ShapeDtypeStruct) -> int:
    """Return the bytes of a tensor."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _flat(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")
