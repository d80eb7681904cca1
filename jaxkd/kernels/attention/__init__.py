"""Scaled dot-product attention whose memory grows with the length, not its square."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkd.arguments import checked, positive
from jaxkd.kernels.attention import reference, xla
from jaxkd.kernels.attention.masks import Band, Tiles
from jaxkd.kernels.attention.scores import Scores
from jaxkd.kernels.dispatch import Versions, dispatch

Segments = Int[Array, "batch _"] | Bool[Array, "batch _"]


@checked(soft_cap=positive)
def attention(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns kv_heads dim"],
    value: Float[Array, "batch columns kv_heads dim"],
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    global_tokens: Sequence[int] = (),
    segment_ids: Segments | tuple[Segments, Segments] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, "heads"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "batch rows heads dim"]:
    """Attend: ``softmax(scale·query·keyᵀ)·value`` over the keys that each query sees.

    Scores are kept of a pair of blocks at a time, forward and backward, and pairs of
    blocks that no query sees are left out. The gradient of causal attention, 12 heads
    of width 64 in bfloat16, on a TPU v5e: at 4,096 tokens no temporaries in HBM, where
    the scores of `jax.nn.dot_product_attention` need 1.5 GiB; at 16,384 tokens 290 MiB,
    where scores do not fit its 16 GiB.

    On several TPUs call it under `jax.shard_map` with ``check_vma=False``, on arrays
    split by batch or heads: XLA cannot split a kernel.

    A padded batch needs no mask of its own: with its attention mask (1 for a token, 0
    for padding) as ``segment_ids``, tokens see tokens and padding sees padding.

    Args:
        query: as many heads as the key, or a multiple: each of its groups shares a head
            of the key and the value (Ainslie et al. 2023, arXiv:2305.13245).
        key: as the value.
        value: as the key.
        causal: no query sees a later key.
        window: how many keys before and after it a query sees, or one number for both,
            as in `jax.nn.dot_product_attention`; None for all. Mistral's window of n,
            the query itself included, is n − 1 here, and Longformer's of n is n // 2.
        global_tokens: positions that see and are seen whatever the window (Beltagy et
            al. 2020, arXiv:2004.05150, Section 3.1).
        segment_ids: queries see keys of their own segment only: one array where rows
            and columns are the same tokens, else one for each.
        scale: of the scores; None for 1/√dim.
        soft_cap: scores become ``soft_cap·tanh(scores / soft_cap)`` (Gemma 2,
            arXiv:2408.00118); None for no cap.
        sinks: a logit of each head that takes its part of the softmax and has no value
            (gpt-oss, arXiv:2508.10925), or None.
        implementation: ``"auto"``, ``"reference"``, ``"xla"`` or ``"pallas"`` (on TPUs,
            splash attention, and XLA where JAX's integers have 64 bits); see
            `jaxkd.kernels`.

    Returns:
        In the query's dtype, softmax in float32; 0 where a query sees nothing.

    Raises:
        ValueError: shapes do not fit, ``causal``, ``window`` or ``global_tokens`` with
            as many queries as keys not given, a negative window, a global token that
            does not exist, or an unknown implementation.
    """
    _check_shapes(query, key, value, segment_ids)
    band = _band(causal, window, global_tokens, query.shape[1], key.shape[1])
    scores = Scores(query.shape[-1] ** -0.5 if scale is None else scale, soft_cap)
    versions = _versions(xla.attend, band, scores)
    given = query, key, value, *_two(segment_ids), sinks
    return dispatch("attention", implementation, versions, *given)


@checked()
def block_sparse_attention(
    query: Float[Array, "batch rows heads dim"],
    key: Float[Array, "batch columns heads dim"],
    value: Float[Array, "batch columns heads dim"],
    table: Bool[np.ndarray, "patterns row_blocks column_blocks"],
    *,
    segment_ids: Segments | tuple[Segments, Segments] | None = None,
    implementation: str = "auto",
) -> Float[Array, "batch rows heads dim"]:
    """Attend where a block of queries sees whole blocks of keys, as `attention` does.

    Args:
        query: ``rows`` is a multiple of the table's.
        key: ``columns`` is a multiple of the table's.
        value: as the key.
        table: who sees whom, for each head or, with one pattern, for all; NumPy
            booleans, fixed when the program is compiled (`bigbird_table`).
        segment_ids: as in `attention`.
        implementation: as in `attention`.

    Returns:
        In the query's dtype; 0 where a query sees nothing.

    Raises:
        ValueError: shapes do not fit, a table with a row that sees nothing, or an
            unknown implementation.
    """
    _check_shapes(query, key, value, segment_ids)
    rows, heads = query.shape[1:3]
    columns = key.shape[1]
    if key.shape[2] != heads:
        raise ValueError(
            f"query has {heads} heads but key {key.shape[2]}: patterns are of heads, "
            "so repeat the key's and the value's"
        )
    patterns, row_blocks, column_blocks = table.shape
    if patterns not in (1, heads) or rows % row_blocks or columns % column_blocks:
        raise ValueError(
            f"table has shape {table.shape}, but there are {heads} heads, {rows} "
            f"queries and {columns} keys: it needs 1 or {heads} patterns, and blocks "
            "that divide the queries and the keys"
        )
    if not table.any(-1).all():
        where = np.argwhere(~table.any(-1))[0].tolist()
        raise ValueError(
            f"table has nothing True in row {where[1]} of pattern {where[0]}: every "
            "block of queries must see one of keys"
        )
    full = np.repeat(table, heads // patterns, axis=0)
    sizes = rows // row_blocks, columns // column_blocks
    tiles = Tiles(full.tobytes(), full.shape, *sizes)
    versions = _versions(xla.attend_tiles, tiles, Scores(query.shape[-1] ** -0.5))
    given = query, key, value, *_two(segment_ids), None
    return dispatch("block_sparse_attention", implementation, versions, *given)


@checked()
def bigbird_table(
    blocks: int, random: int, heads: int, seed: int = 0
) -> Bool[np.ndarray, "heads blocks blocks"]:
    """Return BigBird's pattern for `block_sparse_attention`.

    A block sees itself and its neighbours, the first and the last block, and random
    others that differ between heads; the first and the last see all (Zaheer et al.
    2020, arXiv:2007.14062, Section 2).

    Args:
        blocks: of the sequence.
        random: others that a block sees; fewer where there are not as many.
        heads: patterns.
        seed: of the random blocks. A trained model keeps the one it was trained with.
    """
    draw = np.random.default_rng(seed)
    place = np.arange(blocks)
    near = np.abs(place[:, None] - place[None]) <= 1
    near[[0, -1]] = True
    near[:, [0, -1]] = True
    table = np.repeat(near[None], heads, axis=0)
    for row in table.reshape(-1, blocks):
        row[draw.permutation(np.flatnonzero(~row))[:random]] = True
    return table


def _versions(
    blocks: Callable[..., Array], band: Band | Tiles, scores: Scores
) -> Versions:
    from jaxkd.kernels.attention import tpu  # Pallas: most of a second.

    # Splash attention cannot be traced where integers have 64 bits.
    kernel = None if jax.config.read("jax_enable_x64") else tpu.attend
    return Versions(
        reference=functools.partial(reference.attend, band=band, scores=scores),
        xla=functools.partial(blocks, band=band, scores=scores),
        tpu=kernel and functools.partial(kernel, band=band, scores=scores),
    )


def _two(segment_ids: Any) -> tuple[Array | None, Array | None]:
    """Return the rows' and the columns', None where they are the same."""
    pair = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, None)
    rows, columns = (None if x is None else x.astype(jnp.int32) for x in pair)
    return rows, columns


def _band(
    causal: bool,
    window: int | tuple[int, int] | None,
    global_tokens: Sequence[int],
    rows: int,
    columns: int,
) -> Band:
    """Return what is visible by place, after checks."""
    by_place = causal or window is not None or len(global_tokens)
    if by_place and rows != columns:
        raise ValueError(
            "causal, window and global_tokens compare the places of queries and keys, "
            f"but query has {rows} and key {columns}: give as many, or leave them out"
        )
    left, right = (window, window) if not isinstance(window, tuple) else window
    if window is not None and min(left or 0, right or 0) < 0:
        raise ValueError(
            f"window must be at least 0, got {window}: it counts the keys before and "
            "after a query, itself not included"
        )
    tokens = tuple(int(token) for token in global_tokens)
    bad = [token for token in tokens if not 0 <= token < rows]
    if bad:
        raise ValueError(
            f"global_tokens has {bad}, but positions are 0 to {rows - 1}: name tokens "
            "that exist"
        )
    if window is None:
        tokens = ()
    return Band(left, None if causal else right, causal, tokens)


def _check_shapes(query: Array, key: Array, value: Array, segment_ids: Any) -> None:
    batch, rows, heads, dim = query.shape
    if key.shape != value.shape:
        raise ValueError(
            f"key has shape {key.shape} but value {value.shape}: they must be the same"
        )
    if (key.shape[0], key.shape[3]) != (batch, dim) or heads % key.shape[2]:
        raise ValueError(
            f"query has shape {query.shape} but key {key.shape}: batch and dim must be "
            "the same, and query's heads a multiple of key's"
        )
    if 0 in query.shape or 0 in key.shape:
        raise ValueError(
            f"query of shape {query.shape} and key of shape {key.shape} must not be "
            "empty"
        )
    lengths = rows, key.shape[1]
    if segment_ids is None:
        return
    if not isinstance(segment_ids, tuple):
        if rows != key.shape[1]:
            raise ValueError(
                f"segment_ids is one array, but query has {rows} tokens and key "
                f"{key.shape[1]}: give a tuple of the rows' and the columns'"
            )
        segment_ids = (segment_ids,)
    for ids, length in zip(segment_ids, lengths, strict=False):
        if ids.shape != (batch, length):
            raise ValueError(
                f"segment_ids has shape {ids.shape}, but there are {batch} x {length} "
                "tokens"
            )
