"""Attention with every score of the length × length matrix kept: the meaning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd.kernels.attention.masks import Band, Tiles


def attend(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns kv_heads dim"],
    value: Float[Array, "batch columns kv_heads dim"],
    row_segments: Int[Array, "batch rows"] | None,
    column_segments: Int[Array, "batch columns"] | None,
    *,
    band: Band | Tiles,
) -> Float[Array, "batch rows heads dim"]:
    """Return softmax(query·keyᵀ/√dim)·value over the keys that each query sees."""
    batch, rows, heads, dim = query.shape
    columns, kv_heads = key.shape[1:3]
    work = jnp.promote_types(query.dtype, jnp.float32)
    q = query.astype(work).reshape(batch, rows, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("brkgd,bckd->bkgrc", q, key.astype(work)) / dim**0.5
    seen = band.visible(jnp.arange(rows)[:, None], jnp.arange(columns)[None])
    if row_segments is not None:
        other = row_segments if column_segments is None else column_segments
        seen = seen & (row_segments[:, :, None] == other[:, None])[:, None, None]
    # A query that sees nothing gets 0, not the mean of what it does not see.
    scores = jnp.where(seen, scores, -jnp.inf)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isneginf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    out = jnp.einsum("bkgrc,bckd->brkgd", weights, value.astype(work))
    return out.reshape(query.shape).astype(query.dtype)
