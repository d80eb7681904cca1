"""Attention with every score of the length × length matrix kept: the meaning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd.kernels.attention.masks import Band, Tiles
from jaxkd.kernels.attention.scores import Scores


def attend(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns kv_heads dim"],
    value: Float[Array, "batch columns kv_heads dim"],
    row_segments: Int[Array, "batch rows"] | None,
    column_segments: Int[Array, "batch columns"] | None,
    sinks: Float[Array, "heads"] | None = None,
    *,
    band: Band | Tiles,
    scores: Scores,
) -> Float[Array, "batch rows heads dim"]:
    """Return softmax(scores)·value over the keys that each query sees."""
    batch, rows, heads, dim = query.shape
    columns, kv_heads = key.shape[1:3]
    work = jnp.promote_types(query.dtype, jnp.float32)
    q = query.astype(work).reshape(batch, rows, kv_heads, heads // kv_heads, dim)
    logits = scores(jnp.einsum("brkgd,bckd->bkgrc", q, key.astype(work)))
    seen = band.visible(jnp.arange(rows)[:, None], jnp.arange(columns)[None])
    if row_segments is not None:
        other = row_segments if column_segments is None else column_segments
        seen = seen & (row_segments[:, :, None] == other[:, None])[:, None, None]
    # A query that sees nothing gets 0, not the mean of what it does not see.
    logits = jnp.where(seen, logits, -jnp.inf)
    if sinks is not None:  # As of one key more.
        own = sinks.astype(work).reshape(kv_heads, heads // kv_heads, 1, 1)
        logits = jnp.concatenate(
            [logits, jnp.broadcast_to(own, (*logits.shape[:-1], 1))], axis=-1
        )
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    weights = weights[..., :columns] / jnp.where(total == 0, 1, total)
    out = jnp.einsum("bkgrc,bckd->brkgd", weights, value.astype(work))
    return out.reshape(query.shape).astype(query.dtype)
