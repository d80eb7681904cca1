"""Attention block by block: a scan over the pairs of blocks that hold a visible pair.

The softmax is summed up as blocks come (Milakov and Gimelshein 2018, arXiv:1805.02867),
and the backward pass computes the scores again (Dao et al. 2022, arXiv:2205.14135), so
that memory grows with the length and blocks that no query sees cost nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd.kernels.attention.masks import Band, Tiles
from jaxkd.kernels.attention.scores import Scores

LEAST, BLOCK = 64, 512
"""Tokens of a block."""


class Cut(NamedTuple):
    """What is visible by place, how it is scored, and the sizes of blocks.

    Attributes:
        band: of positions.
        scores: of products.
        rows: queries of a block.
        columns: keys of a block.
    """

    band: Band
    scores: Scores
    rows: int
    columns: int


def attend(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns kv_heads dim"],
    value: Float[Array, "batch columns kv_heads dim"],
    row_segments: Int[Array, "batch rows"] | None,
    column_segments: Int[Array, "batch columns"] | None,
    sinks: Float[Array, "heads"] | None = None,
    *,
    band: Band,
    scores: Scores,
) -> Float[Array, "batch rows heads dim"]:
    """Return softmax(scores)·value over the keys that each query sees."""
    lengths = query.shape[1], key.shape[1]
    most = band.block(LEAST, BLOCK)
    rows, columns = (math.ceil(n / math.ceil(n / most)) for n in lengths)
    pairs = jnp.asarray(band.pairs(*lengths, rows, columns))
    cut = Cut(band, scores, rows, columns)
    segments = row_segments, column_segments
    return pairwise(query, key, value, *segments, sinks, pairs, cut)


def attend_tiles(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns heads dim"],
    value: Float[Array, "batch columns heads dim"],
    row_segments: Int[Array, "batch rows"] | None,
    column_segments: Int[Array, "batch columns"] | None,
    sinks: None = None,
    *,
    band: Tiles,
    scores: Scores,
) -> Float[Array, "batch rows heads dim"]:
    """Return the same where each head has its own pairs of blocks, without sinks."""
    cut = Cut(Band(), scores, band.rows, band.columns)
    segments = row_segments, column_segments

    def head(q: Array, k: Array, v: Array, pairs: Array) -> Array:
        q, k, v = (x[:, :, None] for x in (q, k, v))
        return pairwise(q, k, v, *segments, sinks, pairs, cut)[:, :, 0]

    pairs = jnp.asarray(band.pairs())
    return jax.vmap(head, (2, 2, 2, 0), 2)(query, key, value, pairs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def pairwise(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns kv_heads dim"],
    value: Float[Array, "batch columns kv_heads dim"],
    row_segments: Int[Array, "batch rows"] | None,
    column_segments: Int[Array, "batch columns"] | None,
    sinks: Float[Array, "heads"] | None,
    pairs: Int[Array, "pairs 2"],
    cut: Cut,
) -> Float[Array, "batch rows heads dim"]:
    """Return attention within the pairs of blocks, each given once."""
    segments = row_segments, column_segments
    return _pairwise(query, key, value, *segments, sinks, pairs, cut)[0]


def _pairwise(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns kv_heads dim"],
    value: Float[Array, "batch columns kv_heads dim"],
    row_segments: Int[Array, "batch rows"] | None,
    column_segments: Int[Array, "batch columns"] | None,
    sinks: Float[Array, "heads"] | None,
    pairs: Int[Array, "pairs 2"],
    cut: Cut,
) -> tuple[Array, Array]:
    """Return attention and the logarithm of each softmax's denominator.

    The second is (batch, heads, rows).
    """
    batch, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    work = jnp.promote_types(query.dtype, jnp.float32)
    q, k, v, seen = _cut(cut, query, key, value, row_segments, column_segments)
    shape = (len(q), batch, kv_heads, heads // kv_heads, cut.rows)
    lowest = jnp.finfo(work).min

    def visit(carry: tuple, pair: Any) -> tuple:
        out, top, total = carry
        i, j = pair[0], pair[1]
        visible = seen(i, j)
        scores = jnp.where(visible, _scores(q[i], k[j], work, cut), lowest)
        old = top[i]
        new = jnp.maximum(old, scores.max(-1))
        weights = jnp.where(visible, jnp.exp(scores - new[..., None]), 0)
        fade = jnp.exp(old - new)
        add = jnp.einsum(
            "bkgrc,bkcd->bkgrd",
            weights.astype(value.dtype),
            v[j],
            preferred_element_type=work,
        )
        out = out.at[i].set(out[i] * fade[..., None] + add)
        total = total.at[i].set(total[i] * fade + weights.sum(-1))
        return (out, top.at[i].set(new), total), None

    top, total = jnp.full(shape, lowest, work), jnp.zeros(shape, work)
    if sinks is not None:
        own = sinks.astype(work).reshape(kv_heads, -1, 1)
        top, total = jnp.broadcast_to(own, shape), jnp.ones(shape, work)
    start = jnp.zeros((*shape, dim), work), top, total
    (out, top, total), _ = jax.lax.scan(visit, start, pairs)
    total = jnp.where(total == 0, 1, total)
    out = _join_rows(out / total[..., None], length).astype(query.dtype)
    return out, _join_statistics(top + jnp.log(total), length)


def _backward(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns kv_heads dim"],
    value: Float[Array, "batch columns kv_heads dim"],
    row_segments: Int[Array, "batch rows"] | None,
    column_segments: Int[Array, "batch columns"] | None,
    sinks: Float[Array, "heads"] | None,
    pairs: Int[Array, "pairs 2"],
    out: Float[Array, "batch rows heads dim"],
    log_total: Float[Array, "batch heads rows"],
    cotangent: Float[Array, "batch rows heads dim"],
    cut: Cut,
) -> tuple[Array, Array, Array, Array | None]:
    """Return the gradients of the query, the key, the value and the sinks."""
    length, keys = query.shape[1], key.shape[1]
    kv_heads = key.shape[2]
    work = jnp.promote_types(query.dtype, jnp.float32)
    q, k, v, seen = _cut(cut, query, key, value, row_segments, column_segments)
    g = _cut_rows(cotangent, cut.rows, kv_heads)
    # Row sums of (softmax's gradient) x (softmax).
    shared = jnp.einsum("brhd,brhd->bhr", out, cotangent, preferred_element_type=work)
    of_sinks = None
    if sinks is not None:
        share = jnp.exp(sinks.astype(work)[:, None] - log_total)
        of_sinks = -(share * shared).sum((0, 2)).astype(sinks.dtype)
    log_total, shared = (
        _cut_statistics(x, cut.rows, kv_heads) for x in (log_total, shared)
    )

    def visit(carry: tuple, pair: Any) -> tuple:
        dq, dk, dv = carry
        i, j = pair[0], pair[1]
        scores = _scores(q[i], k[j], work, cut)
        exponent = scores - log_total[i][..., None]
        weights = jnp.exp(jnp.where(seen(i, j), exponent, -jnp.inf))
        of_weights = jnp.einsum(
            "bkgrd,bkcd->bkgrc", g[i], v[j], preferred_element_type=work
        )
        of_scores = weights * (of_weights - shared[i][..., None])
        of_products = (of_scores * cut.scores.slope(scores)).astype(query.dtype)

        def product(letters: str, x: Array, y: Array) -> Array:
            return jnp.einsum(letters, x, y, preferred_element_type=work)

        dq = dq.at[i].add(product("bkgrc,bkcd->bkgrd", of_products, k[j]))
        dk = dk.at[j].add(product("bkgrc,bkgrd->bkcd", of_products, q[i]))
        weights = weights.astype(cotangent.dtype)
        dv = dv.at[j].add(product("bkgrc,bkgrd->bkcd", weights, g[i]))
        return (dq, dk, dv), None

    start = tuple(jnp.zeros(x.shape, work) for x in (q, k, v))
    (dq, dk, dv), _ = jax.lax.scan(visit, start, pairs)
    return (
        _join_rows(dq, length).astype(query.dtype),
        _join_columns(dk, keys).astype(key.dtype),
        _join_columns(dv, keys).astype(value.dtype),
        of_sinks,
    )


def _save(*arguments: Any) -> tuple[Array, tuple]:
    out, log_total = _pairwise(*arguments)
    return out, (*arguments[:7], out, log_total)


def _gradients(cut: Cut, saved: tuple[Any, ...], cotangent: Array) -> tuple:
    found: tuple = _backward(*saved, cotangent, cut)  # pyright: ignore[reportCallIssue]
    *of_arrays, of_sinks = found
    return (*of_arrays, None, None, of_sinks, None)


pairwise.defvjp(_save, _gradients)


def _scores(q: Array, k: Array, work: Any, cut: Cut) -> Array:
    products = jnp.einsum("bkgrd,bkcd->bkgrc", q, k, preferred_element_type=work)
    return cut.scores(products)


def _cut(
    cut: Cut,
    query: Array,
    key: Array,
    value: Array,
    row_segments: Array | None,
    column_segments: Array | None,
) -> tuple[Array, Array, Array, Callable[[Any, Any], Array]]:
    """Return blocks, and the function of two blocks' numbers that says who sees."""
    rows, columns = query.shape[1], key.shape[1]
    row_blocks = column_blocks = None
    if row_segments is not None:
        other = row_segments if column_segments is None else column_segments
        row_blocks = _blocks(row_segments, cut.rows)
        column_blocks = _blocks(other, cut.columns)

    def seen(i: Any, j: Any) -> Array:
        row = i * cut.rows + jnp.arange(cut.rows)[:, None]
        column = j * cut.columns + jnp.arange(cut.columns)[None]
        # What fills the last block sees nothing and is not seen.
        found = cut.band.visible(row, column) & (row < rows) & (column < columns)
        if row_blocks is None or column_blocks is None:
            return found
        same = row_blocks[i][:, :, None] == column_blocks[j][:, None]
        return (found & same)[:, None, None]

    q = _cut_rows(query, cut.rows, key.shape[2])
    k, v = (_blocks(x, cut.columns).swapaxes(2, 3) for x in (key, value))
    return q, k, v, seen


def _blocks(x: Array, size: int) -> Array:
    """Return (blocks, batch, size, ...) of (batch, length, ...), filled up with 0."""
    count = math.ceil(x.shape[1] / size)
    fill = [(0, 0)] * x.ndim
    fill[1] = (0, count * size - x.shape[1])
    x = jnp.pad(x, fill)
    return x.reshape(x.shape[0], count, size, *x.shape[2:]).swapaxes(0, 1)


def _cut_rows(x: Array, size: int, kv_heads: int) -> Array:
    """Return (blocks, batch, kv_heads, group, size, dim) of the query or its like."""
    batch, rows, heads, dim = x.shape
    x = x.reshape(batch, rows, kv_heads, heads // kv_heads, dim)
    return jnp.moveaxis(_blocks(x, size), 2, 4)


def _join_rows(x: Array, rows: int) -> Array:
    """Undo `_cut_rows`."""
    x = jnp.moveaxis(x, 4, 2).swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, x.shape[3] * x.shape[4], x.shape[5])[:, :rows]


def _join_columns(x: Array, columns: int) -> Array:
    """Undo the cut of the key and the value."""
    x = x.swapaxes(2, 3).swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :columns]


def _cut_statistics(x: Array, size: int, kv_heads: int) -> Array:
    """Return (blocks, batch, kv_heads, group, size) of (batch, heads, rows)."""
    return _cut_rows(x.swapaxes(1, 2)[..., None], size, kv_heads)[..., 0]


def _join_statistics(x: Array, rows: int) -> Array:
    """Undo `_cut_statistics`."""
    return _join_rows(x[..., None], rows)[..., 0].swapaxes(1, 2)
