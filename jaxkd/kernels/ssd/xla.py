"""The recurrence by chunks: matrix products within one, the state between them."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK = 128
"""Tokens of a chunk, as wide as a TPU's matrix unit."""


def scan(
    x: Float[Array, "batch length heads width"],
    log_decay: Float[Array, "batch length heads"],
    b: Float[Array, "batch length groups size"],
    c: Float[Array, "batch length groups size"],
    state: Float[Array, "batch heads width size"],
) -> tuple[Array, Array]:
    """Return every token's output, and the state after the last."""
    batch, length, heads, width = x.shape
    groups = b.shape[2]
    count = math.ceil(length / CHUNK)
    chunk = math.ceil(length / count)

    def cut(y: Array, *shape: int) -> Array:
        # What fills the last chunk neither decays the state nor adds to it.
        y = jnp.pad(y, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (y.ndim - 2))
        return y.reshape(batch, count, chunk, groups, *shape).swapaxes(0, 1)

    per_group = heads // groups
    chunks = (
        cut(x, per_group, width),
        cut(log_decay.astype(state.dtype), per_group),
        cut(b, b.shape[3]),
        cut(c, c.shape[3]),
    )
    grouped = state.reshape(batch, groups, per_group, *state.shape[2:])
    # Checkpointed, so that of a chunk only the state before it is kept.
    grouped, out = jax.lax.scan(jax.checkpoint(_chunk), grouped, chunks)
    out = out.swapaxes(0, 1).reshape(batch, count * chunk, heads, width)
    return out[:, :length], grouped.reshape(state.shape)


def _chunk(
    state: Float[Array, "batch groups heads width size"],
    tokens: tuple[Array, Array, Array, Array],
) -> tuple[Array, Array]:
    """Return the state after a chunk, and its outputs.

    Letters of the products: i and j tokens, g groups, h heads of a group, p width, s
    size of the state.
    """
    x, log_decay, b, c = tokens
    work = state.dtype
    since_start = jnp.cumsum(log_decay, axis=1)
    lag = since_start[:, :, None] - since_start[:, None]
    place = jnp.arange(x.shape[1])
    later = (place[:, None] >= place)[None, :, :, None, None]
    decay = jnp.exp(jnp.where(later, lag, -jnp.inf))
    scores = jnp.einsum("bigs,bjgs->bijg", c, b, preferred_element_type=work)
    mixer = (scores[..., None] * decay).astype(x.dtype)
    out = jnp.einsum("bijgh,bjghp->bighp", mixer, x, preferred_element_type=work)
    carried = jnp.einsum("bigs,bghps->bighp", c.astype(work), state)
    out += carried * jnp.exp(since_start)[..., None]
    to_end = jnp.exp(since_start[:, -1:] - since_start)
    added = jnp.einsum("bjghp,bjgs->bghps", x * to_end[..., None], b.astype(work))
    state = state * jnp.exp(since_start[:, -1])[..., None, None] + added
    return state, out.astype(x.dtype)
