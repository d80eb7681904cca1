"""The scan of Mamba-2: a linear recurrence with one decay a head and token."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.kernels.dispatch import Versions, dispatch
from jaxkd.kernels.ssd import reference, xla


class SSD(NamedTuple):
    """What a scan returns.

    Attributes:
        out: (batch, length, heads, width), in x's dtype.
        state: after the last token, (batch, heads, width, size), at least float32.
    """

    out: Array
    state: Array


@checked()
def ssd(
    x: Float[Array, "batch length heads width"],
    log_decay: Float[Array, "batch length heads"],
    b: Float[Array, "batch length groups size"],
    c: Float[Array, "batch length groups size"],
    *,
    state: Float[Array, "batch heads width size"] | None = None,
    implementation: str = "auto",
) -> SSD:
    """Scan ``h[t] = exp(log_decay[t])·h[t−1] + x[t]·b[t]ᵀ``, ``out[t] = h[t]·c[t]``.

    Computed by chunks of 128 tokens (Dao and Gu 2024, arXiv:2405.21060, Section 6):
    matrix products instead of one step a token, and the gradient keeps a state a chunk
    instead of one a token: for 4,096 tokens, 64 heads of width 64 and states of 128 on
    a TPU v5e, 64 MiB of temporaries instead of 16.4 GiB.

    Mamba-2's layer passes ``x·dt`` and ``dt·A``, and adds its skip D·x afterwards.

    Args:
        x: inputs.
        log_decay: at most 0 for a state that does not grow.
        b: as many groups as heads, or a divisor: a group's heads share it.
        c: as b.
        state: before the first token; 0 if None.
        implementation: ``"auto"``, ``"reference"`` or ``"xla"``; see `jaxkd.kernels`.

    Raises:
        ValueError: shapes do not fit, no token, or an unknown implementation.
    """
    batch, length, heads, width = x.shape
    groups, size = b.shape[2:]
    if b.shape != c.shape or b.shape[:2] != x.shape[:2] or heads % groups:
        raise ValueError(
            f"x has shape {x.shape}, b {b.shape} and c {c.shape}: b and c must be the "
            "same, their batch and length x's, and x's heads a multiple of their groups"
        )
    if log_decay.shape != x.shape[:3]:
        raise ValueError(
            f"log_decay has shape {log_decay.shape} but x {x.shape}: give one value a "
            "head and token"
        )
    if length == 0:
        raise ValueError(f"x has no token: its shape is {x.shape}")
    work = jnp.promote_types(x.dtype, jnp.float32)
    if state is None:
        state = jnp.zeros((batch, heads, width, size), work)
    elif state.shape != (batch, heads, width, size):
        raise ValueError(
            f"state has shape {state.shape}, but x {x.shape} and b {b.shape} need "
            f"{(batch, heads, width, size)}"
        )
    versions = Versions(reference=reference.scan, xla=xla.scan)
    arrays = x, log_decay, b, c, state.astype(work)
    return SSD(*dispatch("ssd", implementation, versions, *arrays))


def ssd_step(
    state: Float[Array, "batch heads width size"],
    x: Float[Array, "batch heads width"],
    log_decay: Float[Array, "batch heads"],
    b: Float[Array, "batch groups size"],
    c: Float[Array, "batch groups size"],
) -> SSD:
    """Scan one token further, to generate: as `ssd`, without the axis of length."""
    state, out = reference.step(state, x, log_decay, b, c)
    return SSD(out, state)
