"""Networks of the NAS-Bench-201 space (Dong and Yang 2020, arXiv:2001.00326).

A cell has four nodes; node i is the sum over all earlier nodes j of an operation on
node j. Five operations on six edges make 15,625 cells. The network is a stem, three
stages of equal cells, and a residual block of stride 2 between stages.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.models.parts.blocks import BatchNorm, Image, check_channels, conv, pool
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The operations of an edge, under the benchmark's names and in its order."""

NODES = 4
EDGES = tuple((node, source) for node in range(1, NODES) for source in range(node))
"""(node, source) of every edge, in the order of a cell's operations."""


class ReLUConvNorm(nnx.Module):
    """ReLU, a convolution and BatchNorm: the benchmark's convolutional operation."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int,
        stride: int = 1,
        *,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(channels_in, channels, kernel, stride, rngs=rngs)
        self.bn = BatchNorm(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the normalised map."""
        return self.bn(self.conv(jax.nn.relu(x)))


class Plain(nnx.Module):
    """An operation without parameters."""

    def __init__(self, function: Callable[[Array], Array]):
        self.function = function

    def __call__(self, x: Array) -> Array:
        """Return what the function makes of the map."""
        return self.function(x)


def average_pool(x: Array) -> Array:
    """Return 3x3 means, of the pixels inside only where the border cuts them."""
    return nnx.avg_pool(
        x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False
    )


def _same(x: Array) -> Array:
    return x


WITHOUT_PARAMETERS = {
    "none": jnp.zeros_like,
    "skip_connect": _same,
    "avg_pool_3x3": average_pool,
}
"""Functions of a map, by the operations' names."""


@checked()
def operation(name: str, channels: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Return the operation of that name, which keeps the map's size.

    Raises:
        ValueError: there is none.
    """
    if name not in OPERATIONS:
        raise ValueError(unknown_name("operation", name, OPERATIONS))
    if name not in WITHOUT_PARAMETERS:
        return ReLUConvNorm(channels, channels, int(name[-1]), rngs=rngs)
    return Plain(WITHOUT_PARAMETERS[name])


@checked()
def run_cell(x: Array, edge: Callable[[int, Array], Array]) -> Array:
    """Return a cell's last node.

    Args:
        x: the first node.
        edge: ``(position in EDGES, source node's map) -> map``.
    """
    nodes = [x, *[jnp.zeros_like(x)] * (NODES - 1)]
    for position, (node, source) in enumerate(EDGES):
        nodes[node] = nodes[node] + edge(position, nodes[source])
    return nodes[-1]


class Cell(nnx.Module):
    """One cell: an operation an edge."""

    def __init__(self, operations: Sequence[str], channels: int, *, rngs: nnx.Rngs):
        self.edges = nnx.List(operation(o, channels, rngs=rngs) for o in operations)

    def __call__(self, x: Array) -> Array:
        """Return the last node."""
        return run_cell(x, lambda i, source: self.edges[i](source))


class Reduction(nnx.Module):
    """The residual block between stages: twice the channels, half the map."""

    def __init__(self, channels_in: int, channels: int, *, rngs: nnx.Rngs):
        self.conv_a = ReLUConvNorm(channels_in, channels, 3, 2, rngs=rngs)
        self.conv_b = ReLUConvNorm(channels, channels, 3, rngs=rngs)
        self.downsample = conv(channels_in, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the block's sum."""
        half = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        return self.conv_b(self.conv_a(x)) + self.downsample(half)


class NASBench201(nnx.Module):
    """A stem, stages of cells, BatchNorm, ReLU, pooling and a linear head.

    Taps: ``stage1``, ``stage2`` and ``stage3`` (batch, height, width, channels), the
    last one after BatchNorm and ReLU, and ``pooled`` (batch, channels).
    """

    taps = cuts = ("stage1", "stage2", "stage3", "pooled")

    def __init__(
        self,
        operations: Sequence[str],
        classes: int,
        channels: int,
        cells: int,
        channels_in: int,
        *,
        rngs: nnx.Rngs,
    ):
        widths = (channels, 2 * channels, 4 * channels)
        self.channels_in = channels_in
        self.conv1 = conv(channels_in, channels, rngs=rngs)
        self.bn1 = BatchNorm(channels, rngs=rngs)
        self.stages = nnx.List(
            nnx.List(Cell(operations, width, rngs=rngs) for _ in range(cells))
            for width in widths
        )
        self.reductions = nnx.List(
            Reduction(width, 2 * width, rngs=rngs) for width in widths[:-1]
        )
        self.bn2 = BatchNorm(widths[-1], rngs=rngs)
        self.fc = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = image
        for i in range(1, 4):
            x = steps(f"stage{i}", self._stage, i, x)
        return steps.outputs(self.fc, steps("pooled", pool, x))

    def _stage(self, number: int, x: Array) -> Array:
        if number == 1:
            x = self.bn1(self.conv1(check_channels(x, self.channels_in)))
        else:
            x = self.reductions[number - 2](x)
        for cell in self.stages[number - 1]:
            x = cell(x)
        return jax.nn.relu(self.bn2(x)) if number == 3 else x


@checked()
@recorded
def nasbench201(
    cell: str,
    classes: int = 10,
    *,
    channels: int = 16,
    cells: int = 5,
    channels_in: int = 3,
) -> Network:
    """Return the network of a NAS-Bench-201 cell.

    Args:
        cell: in the benchmark's notation, an operation and its source node for each
            edge of a node, such as ``"|nor_conv_3x3~0|+|none~0|skip_connect~1|+
            |none~0|none~1|avg_pool_3x3~2|"`` without spaces.
        classes: logits.
        channels: of the first stage; each later stage has twice as many.
        cells: in each stage.
        channels_in: the image's channels.

    Raises:
        ValueError: a cell that is not of the benchmark's form, or an unknown operation.
    """
    operations = parse_cell(cell)
    return Network.from_nnx(
        lambda rngs: NASBench201(
            operations, classes, channels, cells, channels_in, rngs=rngs
        )
    )


@checked()
def parse_cell(cell: str) -> tuple[str, ...]:
    """Return the operations of a cell in the benchmark's notation, in order of `EDGES`.

    Raises:
        ValueError: another form, or an unknown operation.
    """
    found = [
        (node, *edge.rpartition("~")[::2])
        for node, edges in enumerate(cell.split("+"), start=1)
        for edge in edges.strip("|").split("|")
    ]
    if [(node, source) for node, _, source in found] != [
        (node, str(source)) for node, source in EDGES
    ]:
        raise ValueError(
            f"cell is {cell!r}: write op~source for the edges of nodes 1, 2 and 3, as "
            f"in {format_cell(['skip_connect'] * len(EDGES))!r}"
        )
    for _, name, _ in found:
        if name not in OPERATIONS:
            raise ValueError(unknown_name("operation", name, OPERATIONS))
    return tuple(name for _, name, _ in found)


@checked()
def format_cell(operations: Sequence[str]) -> str:
    """Return a cell of six operations in the benchmark's notation."""
    edges = list(zip(EDGES, operations, strict=True))
    return "+".join(
        "|" + "".join(f"{name}~{s}|" for (n, s), name in edges if n == node)
        for node in range(1, NODES)
    )


@checked()
def multiply_adds(operations: Sequence[str]) -> float:
    """Return the multiply-adds of a cell's network for one 32x32 image.

    The benchmark's network has 16 channels and 5 cells a stage. A convolution takes as
    many in every stage, since channels double as sides halve; without one, the network
    takes the benchmark's 7.78 million.

    Args:
        operations: of the cell's six edges.
    """
    kernels = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
    areas = sum(kernels.get(name, 0) ** 2 for name in operations)
    return 7.78e6 + areas * 16**2 * 32**2 * 15
