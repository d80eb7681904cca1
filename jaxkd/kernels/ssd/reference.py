"""The state-space recurrence, one token after another: the meaning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def step(
    state: Float[Array, "batch heads width size"],
    x: Float[Array, "batch heads width"],
    log_decay: Float[Array, "batch heads"],
    b: Float[Array, "batch groups size"],
    c: Float[Array, "batch groups size"],
) -> tuple[Array, Array]:
    """Return the state after one token, and its output (batch, heads, width)."""
    repeats = x.shape[1] // b.shape[1]
    b, c = (jnp.repeat(y, repeats, axis=1).astype(state.dtype) for y in (b, c))
    decay = jnp.exp(log_decay.astype(state.dtype))[..., None, None]
    state = decay * state + x.astype(state.dtype)[..., None] * b[:, :, None]
    return state, jnp.einsum("bhps,bhs->bhp", state, c).astype(x.dtype)


def scan(
    x: Float[Array, "batch length heads width"],
    log_decay: Float[Array, "batch length heads"],
    b: Float[Array, "batch length groups size"],
    c: Float[Array, "batch length groups size"],
    state: Float[Array, "batch heads width size"],
) -> tuple[Array, Array]:
    """Return every token's output, and the state after the last."""
    tokens = tuple(y.swapaxes(0, 1) for y in (x, log_decay, b, c))
    state, out = jax.lax.scan(lambda s, token: step(s, *token), state, tokens)
    return out.swapaxes(0, 1), state
