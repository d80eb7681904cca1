"""Weights of few bits: codes, and one scale for each group of inputs of an output."""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from jaxkd.checks import unknown_name

KINDS = {
    "int8": jnp.int8,
    "int4": jnp.int4,
    "int2": jnp.int2,
    "ternary": jnp.int2,
    "fp8": jnp.float8_e4m3fn,
}
"""Names of what weights are rounded to, and the type that their codes are kept in.

JAX keeps int4 and int2 packed, 2 and 4 in a byte."""

TRITS = 5
"""Ternary codes that a byte holds: 3⁵ is 243."""


@flax.struct.dataclass
class QuantizedWeights:
    """Weights (inputs, outputs) that are ``scale·(codes − zero)``.

    A group is consecutive inputs of one output; there are as many groups as the scale
    has rows, one if it is per channel. Groups must not be split between devices.

    Attributes:
        codes: (inputs, outputs), of a type of `KINDS`.
        scale: (groups, outputs).
        zero: (groups, outputs), the code of weight 0; None where it is 0.
    """

    codes: Any
    scale: Any
    zero: Any = None


def quantize(
    weights: Float[Array, "inputs outputs"],
    kind: str,
    *,
    group: int | None = None,
    symmetric: bool = True,
) -> QuantizedWeights:
    """Round weights to the nearest codes.

    Integers of b bits have ``scale = max|w| / (2^(b−1) − 1/2)`` if symmetric: all 2^b
    codes are used, and the largest weight is half a step off at most. Else they are
    spread from ``min(w, 0)`` to ``max(w, 0)``. Ternary codes are −1, 0 and 1 with
    ``scale = mean|w|`` (Ma et al. 2024, arXiv:2402.17764, Eq. 1 to 3, there for all of
    a matrix). fp8 is e4m3 with its largest number, 448, at max|w|.

    Args:
        weights: with Flax's layout.
        kind: a name of `KINDS`.
        group: inputs that share a scale, such as 32, 64 or 128; None for all.
        symmetric: 0 has code 0; else each group has a zero of its own (integers only).

    Returns:
        Scales in the weights' dtype. Groups of zeros alone stay zeros.

    Raises:
        ValueError: an unknown kind, inputs that the group does not divide, or a kind
            that cannot be asymmetric.
    """
    if kind not in KINDS:
        raise ValueError(unknown_name("kind", kind, KINDS))
    if not symmetric and kind in ("ternary", "fp8"):
        raise ValueError(
            f"kind {kind!r} is symmetric: leave symmetric out, or choose int8, int4 or "
            "int2"
        )
    inputs, outputs = weights.shape
    group = inputs if group is None else group
    if group < 1 or inputs % group:
        raise ValueError(
            f"weights has {inputs} inputs, which group={group} does not divide: choose "
            "a divisor, or None for one scale an output"
        )
    work = jnp.promote_types(weights.dtype, jnp.float32)
    grouped = weights.astype(work).reshape(-1, group, outputs)
    scale, zero, (lowest, highest) = _grid(grouped, kind, symmetric)
    # The codes are for the scale as it is kept.
    scale = jnp.where(scale == 0, 1, scale).astype(weights.dtype)
    codes = grouped / scale.astype(work)[:, None]
    if kind != "fp8":
        codes = jnp.round(codes)
    if zero is not None:
        zero = jnp.round(zero / scale.astype(work)) + lowest
        codes = codes + zero[:, None]
        zero = jnp.clip(zero, lowest, highest).astype(KINDS[kind])
    codes = jnp.clip(codes, lowest, highest).astype(KINDS[kind])
    return QuantizedWeights(codes.reshape(inputs, outputs), scale, zero)


def dequantize(
    weights: QuantizedWeights, dtype: DTypeLike = jnp.float32
) -> Float[Array, "inputs outputs"]:
    """Return the weights that the codes stand for.

    Codes less their zeros are exact in bfloat16 too, so that a weight is rounded once.

    Args:
        weights: of `quantize`.
        dtype: of the result, or the scale's where that is wider.
    """
    inputs, outputs = weights.codes.shape
    work = jnp.promote_types(weights.scale.dtype, dtype)
    groups = len(weights.scale)
    codes = weights.codes.astype(work).reshape(groups, -1, outputs)
    if weights.zero is not None:
        codes = codes - weights.zero.astype(work)[:, None]
    return (codes * weights.scale.astype(work)[:, None]).reshape(inputs, outputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def fake_quantize(
    weights: Float[Array, "inputs outputs"],
    kind: str,
    group: int | None = None,
    symmetric: bool = True,
) -> Float[Array, "inputs outputs"]:
    """Return the weights as `quantize` would round them, to be trained all the same.

    The gradient is straight-through: that of the rounded weights (Bengio et al. 2013,
    arXiv:1308.3432).

    Args:
        weights: as in `quantize`, which also has the rest, and what it raises.
        kind: likewise.
        group: likewise.
        symmetric: likewise.
    """
    rounded = quantize(weights, kind, group=group, symmetric=symmetric)
    return dequantize(rounded).astype(weights.dtype)


@fake_quantize.defjvp
def _straight_through(kind, group, symmetric, primals, tangents):
    return fake_quantize(*primals, kind, group, symmetric), tangents[0]


def pack_ternary(codes: Array) -> UInt8[Array, "bytes outputs"]:
    """Return ternary codes (inputs, outputs), 5 in a byte: 1.6 bits each, for storing.

    Products take the codes as they are (2 bits): at that size unpacking, not memory,
    limits them on a TPU v5e by the compiler's estimate.
    """
    inputs, outputs = codes.shape
    trits = codes.astype(jnp.int32) + 1
    trits = jnp.pad(trits, ((0, -inputs % TRITS), (0, 0)))
    powers = 3 ** jnp.arange(TRITS)[:, None]
    return (trits.reshape(-1, TRITS, outputs) * powers).sum(1).astype(jnp.uint8)


def unpack_ternary(packed: UInt8[Array, "bytes outputs"], inputs: int) -> Array:
    """Undo `pack_ternary`.

    Raises:
        ValueError: these bytes are not those of so many inputs.
    """
    if math.ceil(inputs / TRITS) != len(packed):
        raise ValueError(
            f"packed has {len(packed)} rows of {TRITS} codes, but inputs is {inputs}: "
            "give the number of inputs that was packed"
        )
    powers = 3 ** jnp.arange(TRITS)[:, None]
    trits = (packed[:, None].astype(jnp.int32) // powers) % 3 - 1
    return trits.reshape(-1, packed.shape[1])[:inputs].astype(KINDS["ternary"])


def _grid(
    grouped: Float[Array, "groups size outputs"], kind: str, symmetric: bool
) -> tuple[Array, Array | None, tuple[float, float]]:
    """Return the scale, −min where asymmetric, and the lowest and highest code."""
    size = jnp.abs(grouped)
    if kind == "ternary":
        return size.mean(1), None, (-1.0, 1.0)
    if kind == "fp8":
        largest = float(jnp.finfo(KINDS[kind]).max)
        return size.max(1) / largest, None, (-largest, largest)
    info = jnp.iinfo(KINDS[kind])
    codes = float(info.min), float(info.max)
    if symmetric:
        return size.max(1) / (info.max + 0.5), None, codes
    low, high = jnp.minimum(grouped.min(1), 0), jnp.maximum(grouped.max(1), 0)
    return (high - low) / (info.max - info.min), -low, codes
