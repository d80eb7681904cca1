"""N:M sparse weights as kept values and their places, without the zeros."""

import functools
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxkd.arguments import checked, integer
from jaxkd.kernels.nm_matmul.masks import check_groups, check_pattern, nm_mask

LARGEST_GROUP = 16
"""Of m: a place takes 4 bits at most."""


@flax.struct.dataclass
class NMWeights:
    """Weights (inputs, outputs) of which n of every m inputs are kept.

    The i-th kept weights of all groups are a plane of their own, and places that one
    byte holds are far apart: a kernel takes whole tiles of both and moves nothing
    within a tile.

    Attributes:
        values: (n, rows, outputs): the i-th kept weight of each group of m inputs. Rows
            are the groups, filled up with zeros to a multiple of the places in a byte.
        places: (n, rows / places in a byte, outputs), uint8: where in its group each
            value stands, ascending along n; byte r has the places of rows r,
            r + len, r + 2·len, … from its lowest bits up, len being the axis's length.
        inputs: of the dense weights.
        m: of the pattern.
    """

    values: Any
    places: Any
    inputs: int = flax.struct.field(pytree_node=False)
    m: int = flax.struct.field(pytree_node=False)


def place_bits(m: int) -> int:
    """Return the bits of a place among m: 1, 2 or 4, which divide a byte."""
    return 1 if m <= 2 else 2 if m <= 4 else 4


@checked(axis=integer)
def nm_pack(
    weights: Float[Array, "inputs outputs"],
    n: int = 2,
    m: int = 4,
    mask: Bool[Array, "inputs outputs"] | None = None,
) -> NMWeights:
    """Return the kept weights without the zeros; `nm_unpack` gives back every bit.

    In bfloat16 2:4 takes 9/16 of the dense bytes, 1:4 9/32, 4:8 5/8; in float32 2:4
    takes 17/32.

    Args:
        weights: dense.
        n: kept of a group.
        m: consecutive inputs of a group, at most 16.
        mask: what is kept, at most n of a group; None for the largest magnitudes.

    Raises:
        ValueError: a pattern that does not exist or m above 16, inputs that m does not
            divide, a mask of another shape, or one that keeps more than n of a group
            (a mask that is being traced is not looked into).
    """
    check_pattern(n, m)
    check_groups(weights.shape, m)
    if m > LARGEST_GROUP:
        raise ValueError(f"m must be at most {LARGEST_GROUP} to be packed, got {m}")
    inputs, outputs = weights.shape
    if mask is None:
        mask = nm_mask(weights, n, m)
    _check_mask(mask, weights.shape, n, m)
    mask = mask.reshape(-1, m, outputs)
    # Groups that keep fewer than n are filled with places of zeros.
    kept = jnp.argsort(~mask, axis=1, stable=True)[:, :n]
    kept = jnp.sort(kept, axis=1)
    values = jnp.take_along_axis(
        jnp.where(mask, weights.reshape(mask.shape), 0), kept, axis=1
    )
    bits = place_bits(m)
    fill = ((0, 0), (0, -len(mask) % (8 // bits)), (0, 0))
    values, kept = (jnp.pad(x.swapaxes(0, 1), fill) for x in (values, kept))
    split = kept.astype(jnp.uint8).reshape(n, 8 // bits, -1, outputs)
    shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)[:, None, None]
    places = (split << shifts).sum(1, dtype=jnp.uint8)
    return NMWeights(values, places, inputs, m)


def nm_unpack(weights: NMWeights) -> Float[Array, "inputs outputs"]:
    """Return the dense weights, zeros included."""
    n, rows, outputs = weights.values.shape
    places = unpack_places(weights.places, weights.m).reshape(n, rows, outputs)
    groups = jnp.stack(
        [
            entries_at(place, weights.values, places, weights.m)
            for place in range(weights.m)
        ],
        axis=1,
    )
    return groups.reshape(-1, outputs)[: weights.inputs]


def unpack_places(packed: Array, m: int) -> Array:
    """Return the places that bytes hold, (n, places in a byte, bytes, outputs)."""
    bits = place_bits(m)
    shifts = jnp.arange(0, 8, bits, dtype=packed.dtype)[:, None, None]
    return (packed[:, None] >> shifts) & (2**bits - 1)


def entries_at(place: int, values: Array, places: Array, m: int) -> Array:
    """Return every group's weight at one of its m places, 0 where none is kept."""
    n = len(values)
    # Places ascend, so the i-th kept has i before it and n − 1 − i after it.
    possible = [i for i in range(n) if i <= place <= m - n + i]
    choose = [(places[i] == place, values[i]) for i in possible]
    return functools.reduce(
        lambda found, option: jnp.where(option[0], option[1], found),
        choose,
        jnp.zeros_like(values[0]),
    )


def _check_mask(mask: Array, shape: tuple[int, ...], n: int, m: int) -> None:
    if mask.shape != shape:
        raise ValueError(f"mask has shape {mask.shape} but weights {shape}")
    if isinstance(mask, Tracer):
        return
    most = np.asarray(mask).reshape(-1, m, shape[1]).sum(1).max(initial=0)
    if most > n:
        raise ValueError(
            f"mask keeps {most} of a group of m={m}, more than n={n}: make it with "
            "nm_mask(weights, n, m)"
        )
