"""Compiling a program for a TPU slice on a machine that has none.

XLA's TPU compiler comes with ``libtpu`` (the extra ``aot``) and needs a description of
the slice, not the slice: whether a program fits its memory, and what a step costs, is
known before a chip is paid for.
"""

import math
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
    use_abstract_mesh,
)
from jaxtyping import PyTree

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.sharding.mesh import (
    BATCH_AXES,
    MeshShape,
    batch_parts,
    make_mesh,
    on_mesh,
    state_sharding,
)
from jaxkd.training.buffers import DUMP, biggest_buffers
from jaxkd.training.costs import program_costs
from jaxkd.types import Batch, Program

MOST_CHIPS = 2**17
"""Of a topology: more than any pod, or row of pods, has."""


@checked()
@dataclass(frozen=True)
class Chip:
    """One TPU chip, by its maker's figures.

    Attributes:
        memory: bytes of HBM.
        flops: bfloat16 operations a second.
        bandwidth: bytes a second between HBM and the chip.
        interconnect: bytes a second to its neighbours, over all its links.
    """

    memory: int
    flops: float
    bandwidth: float
    interconnect: float


CHIPS = {
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9, 448e9),
}
"""Chips by the name that begins a topology's, such as ``v5e:2x4``."""


@checked()
@dataclass(frozen=True)
class StepPlan:
    """The compiler's figures for one step, on each chip.

    Attributes:
        topology: the slice.
        chips: in it.
        mesh: sizes of the mesh's axes.
        arguments: bytes of the state and the batch.
        temporaries: bytes held during the step.
        code: bytes of the program.
        flops: operations of a step, as `program_costs` counts them.
        bytes_accessed: to and from HBM; likewise.
        collectives: bytes sent to other chips, by the kind of collective; likewise.
        seconds: that compiling took.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    arguments: int
    temporaries: int
    code: int
    flops: float
    bytes_accessed: float
    collectives: dict[str, float]
    seconds: float

    @property
    def memory(self) -> int:
        """Return the bytes that a chip has."""
        return _chip(self.topology).memory

    @property
    def needed(self) -> int:
        """Return the bytes of HBM that a step needs."""
        return self.arguments + self.temporaries + self.code

    @property
    def bounds(self) -> dict[str, float]:
        """Return the seconds that a step takes at least, by what it waits for."""
        chip = _chip(self.topology)
        return {
            "compute": self.flops / chip.flops,
            "memory": self.bytes_accessed / chip.bandwidth,
            "network": sum(self.collectives.values()) / chip.interconnect,
        }


class DoesNotFit(ValueError):
    """A program needs more memory than a chip has; its biggest buffers are named."""


@checked()
def slice_devices(topology: str) -> list[Any]:
    """Return the devices of a slice that need not be here.

    Args:
        topology: chip and shape, such as ``v5e:2x4``, ``v5p:4x4x8`` or ``v6e:16x16``;
            ``2xv5e:16x16`` is two slices that a data centre's network joins.

    Raises:
        ValueError: an unknown chip, or a shape that does not exist.
        ImportError: ``libtpu`` is not installed.
    """
    _chip(topology)
    slices, shape = _slices(topology)
    # Of 0 chips libtpu ends the process, and of too many it fills the memory.
    sizes = [int(x) for x in re.findall(r"\d+", shape.partition(":")[2])]
    if not 1 <= slices * math.prod(sizes) <= MOST_CHIPS:
        raise ValueError(
            f"topology {topology!r} is of {slices * math.prod(sizes):,} chips: name a "
            f"slice of 1 to {MOST_CHIPS:,}, such as v5e:16x16"
        )
    # Without them libtpu looks for a TPU and its neighbours on the network, and lets
    # one process of a machine alone load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ImportError(
            "compiling for TPUs needs libtpu: install jaxkd-distill[aot]"
        ) from None
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(shape, "tpu", num_slices=slices)
    except Exception as error:
        raise ValueError(
            f"topology {topology!r} is no slice that libtpu knows ({error}): name one "
            "such as v5e:2x4, v5e:16x16, v5p:4x4x8 or v6e:16x16"
        ) from None
    return list(found.devices)


@checked()
def compile_for(
    topology: str, function: Callable[..., Any], *arguments: PyTree
) -> jax.stages.Compiled:
    """Compile a function for one chip of a slice that need not be here.

    Args:
        topology: as in `slice_devices`; ``v5e:2x2``, ``v5p:2x2x1`` and ``v6e:2x2`` are
            the smallest.
        function: of arrays.
        *arguments: their shapes (``jax.ShapeDtypeStruct``).

    Raises:
        ValueError: an unknown topology.
        ImportError: ``libtpu`` is not installed.
    """
    one = SingleDeviceSharding(slice_devices(topology)[0])
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), arguments
    )
    return jax.jit(function).lower(*placed).compile()


@checked()
def lower_for_gpu(function: Callable[..., Any], *arguments: PyTree) -> str:
    """Return the module (MLIR) that a function lowers to for an H100, Triton included.

    The last step, machine code, is left to the machine with the GPU.

    Args:
        function: of arrays.
        *arguments: their shapes (``jax.ShapeDtypeStruct``).
    """
    h100 = AbstractDevice(
        device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu"
    )
    triton = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=h100)):
        exported = jax.export.export(
            jax.jit(function), platforms=["cuda"], disabled_checks=[triton]
        )(*arguments)
    return exported.mlir_module()


def _slices(topology: str) -> tuple[int, str]:
    """Return how many slices there are, and what each is."""
    count, times, shape = topology.partition("xv")
    return (int(count), f"v{shape}") if times and count.isdigit() else (1, topology)


def _chip(topology: str) -> Chip:
    name = _slices(topology)[1].partition(":")[0]
    if name not in CHIPS:
        raise ValueError(unknown_name("chip", name, CHIPS))
    return CHIPS[name]


@checked()
def plan_step(
    program: Program, batch: Batch, topology: str, mesh: str | MeshShape = "data"
) -> StepPlan:
    """Compile a program's step for a slice, as `fit` would run it there.

    Nothing is run and no array is made.

    Args:
        program: any.
        batch: shapes (``jax.ShapeDtypeStruct``) of the global batch. What the mesh's
            batch axes do not divide is copied to every chip.
        topology: the slice, as in `slice_devices`.
        mesh: a name of `jaxkd.training.MESHES`, or devices along each axis.

    Raises:
        DoesNotFit: the step needs more memory than a chip has.
        ValueError: a topology or mesh that does not exist.
        ImportError: ``libtpu`` is not installed.
    """
    devices = slice_devices(topology)
    where = make_mesh(mesh, devices)
    started = time.perf_counter()
    state = jax.eval_shape(on_mesh(program.init, where), jax.random.key(0), batch)
    placed = _placed(state, state_sharding(state, where, program.axes))
    shardings = jax.tree.map(lambda x: x.sharding, placed)
    everywhere = NamedSharding(where, PartitionSpec())
    step = jax.jit(
        on_mesh(program.step, where),
        donate_argnums=0,
        out_shardings=(shardings, everywhere),
    )
    lowered = step.lower(placed, _split(batch, where))
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile({**DUMP, "xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            if "memory" not in str(error).lower():
                raise
            biggest = "\n  ".join(biggest_buffers(Path(folder)))
            raise DoesNotFit(
                f"a step does not fit a chip of {topology}: {str(error)[:2000]}\n"
                f"The biggest buffers:\n  {biggest}"
            ) from None
    memory: Any = compiled.memory_analysis()
    costs = program_costs(compiled.as_text() or "")
    return StepPlan(
        topology=topology,
        chips=where.size,
        mesh=dict(where.shape),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=costs.flops,
        bytes_accessed=costs.bytes_accessed,
        collectives=costs.collectives,
        seconds=time.perf_counter() - started,
    )


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _split(batch: Batch, mesh: Mesh) -> PyTree:
    """Return the batch's shapes split over the mesh where they can be divided."""
    parts = batch_parts(mesh)

    def sharding(x: jax.ShapeDtypeStruct) -> NamedSharding:
        divides = x.ndim and x.shape[0] % parts == 0
        return NamedSharding(
            mesh, PartitionSpec(BATCH_AXES) if divides else PartitionSpec()
        )

    return _placed(dict(batch), jax.tree.map(sharding, dict(batch)))
