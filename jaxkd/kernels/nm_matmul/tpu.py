"""The products of N:M sparse weights on TPUs: no dense weight leaves the core.

A block of values and places is read once, spread in registers into the dense weights
of each place, and multiplied.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jaxkd.kernels.nm_matmul.packing import NMWeights, entries_at, place_bits
from jaxkd.kernels.nm_matmul.xla import from_planes, split, to_planes

TOKENS, BYTES, OUTPUTS = 256, 128, 512
"""Of a block at most: 2:4 in bfloat16 then has 1 MiB of values in one."""


def product(
    x: Float[Array, "tokens inputs"], weights: NMWeights, *, interpret: bool = False
) -> Float[Array, "tokens outputs"]:
    """Return ``x·W``."""
    values = split(weights)
    n, parts, rows, outputs = values.shape
    m, tokens, width, high = weights.m, *_blocks(len(x), outputs, rows)
    return pl.pallas_call(
        functools.partial(_product, m=m, rows=rows),
        grid=(pl.cdiv(len(x), tokens), pl.cdiv(outputs, width), pl.cdiv(rows, high)),
        in_specs=[
            pl.BlockSpec((m, parts, tokens, high), lambda t, o, r: (0, 0, t, r)),
            pl.BlockSpec((n, parts, high, width), lambda t, o, r: (0, 0, r, o)),
            pl.BlockSpec((n, high, width), lambda t, o, r: (0, r, o)),
        ],
        out_specs=pl.BlockSpec((tokens, width), lambda t, o, r: (t, o)),
        out_shape=jax.ShapeDtypeStruct((len(x), outputs), x.dtype),
        scratch_shapes=[pltpu.VMEM((tokens, width), _work(x))],
        cost_estimate=_cost(x, weights),
        compiler_params=_PARALLEL,
        interpret=interpret,
    )(to_planes(x, weights), values, weights.places)


def transposed_product(
    y: Float[Array, "tokens outputs"], weights: NMWeights, *, interpret: bool = False
) -> Float[Array, "tokens inputs"]:
    """Return ``y·Wᵀ``."""
    values = split(weights)
    n, parts, rows, outputs = values.shape
    m, tokens, width, high = weights.m, *_blocks(len(y), outputs, rows)
    planes = pl.pallas_call(
        functools.partial(_transposed_product, m=m, outputs=outputs),
        grid=(pl.cdiv(len(y), tokens), pl.cdiv(rows, high), pl.cdiv(outputs, width)),
        in_specs=[
            pl.BlockSpec((tokens, width), lambda t, r, o: (t, o)),
            pl.BlockSpec((n, parts, high, width), lambda t, r, o: (0, 0, r, o)),
            pl.BlockSpec((n, high, width), lambda t, r, o: (0, r, o)),
        ],
        out_specs=pl.BlockSpec((m, parts, tokens, high), lambda t, r, o: (0, 0, t, r)),
        out_shape=jax.ShapeDtypeStruct((m, parts, len(y), rows), y.dtype),
        scratch_shapes=[pltpu.VMEM((m, parts, tokens, high), _work(y))],
        cost_estimate=_cost(y, weights),
        compiler_params=_PARALLEL,
        interpret=interpret,
    )(y, values, weights.places)
    return from_planes(planes, weights)


_PARALLEL = pltpu.CompilerParams(
    dimension_semantics=("parallel", "parallel", "arbitrary")
)


def _product(x: Any, values: Any, places: Any, out: Any, total: Any, *, m, rows):
    """Add up ``x·W`` over the blocks of rows."""
    start = pl.program_id(2) * x.shape[-1]
    _start_at_zero(total)
    for part in range(values.shape[1]):
        of_part = _within(values[:, part], 1, start, rows)
        where = _places(places, part, m)
        for place in range(m):
            dense = entries_at(place, of_part, where, m).astype(x.dtype)
            left = _within(x[place, part], 1, start, rows).astype(x.dtype)
            total[...] += jnp.dot(left, dense, preferred_element_type=total.dtype)
    _finish(out, total)


def _transposed_product(
    y: Any, values: Any, places: Any, out: Any, total: Any, *, m, outputs
):
    """Add up ``y·Wᵀ``, by place and part, over the blocks of outputs."""
    start = pl.program_id(2) * y.shape[-1]
    _start_at_zero(total)
    left = _within(y[...], 1, start, outputs).astype(y.dtype)
    for part in range(values.shape[1]):
        of_part = _within(values[:, part], 2, start, outputs)
        where = _places(places, part, m)
        for place in range(m):
            dense = entries_at(place, of_part, where, m).astype(y.dtype)
            total[place, part] += jax.lax.dot_general(
                left,
                dense,
                (((1,), (1,)), ((), ())),
                preferred_element_type=total.dtype,
            )
    _finish(out, total)


def _start_at_zero(total: Any) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)


def _finish(out: Any, total: Any) -> None:
    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        out[...] = total[...].astype(out.dtype)


def _places(packed: Any, part: int, m: int) -> Array:
    """Return the places that some bits of each byte hold."""
    bits = place_bits(m)
    return (packed[...].astype(jnp.int32) >> (bits * part)) & (2**bits - 1)


def _within(block: Array, axis: int, start: Any, size: int) -> Array:
    """Return the block in float32 at least, 0 where it goes beyond the array."""
    block = block.astype(_work(block))
    if size % block.shape[axis] == 0:
        return block
    position = jax.lax.broadcasted_iota(jnp.int32, block.shape, axis) + start
    return jnp.where(position < size, block, 0)


def _blocks(tokens: int, outputs: int, rows: int) -> tuple[int, int, int]:
    return min(TOKENS, tokens), min(OUTPUTS, outputs), min(BYTES, rows)


def _cost(x: Array, weights: NMWeights) -> pl.CostEstimate:
    """Return what XLA is told: a block of tokens reads all weights once."""
    _, rows, outputs = weights.values.shape
    inputs = rows * weights.m
    activations = len(x) * (inputs + outputs) * x.dtype.itemsize
    read = weights.values.nbytes + weights.places.nbytes
    return pl.CostEstimate(
        flops=2 * len(x) * inputs * outputs,
        transcendentals=0,
        bytes_accessed=activations + pl.cdiv(len(x), TOKENS) * read,
    )


def _work(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
