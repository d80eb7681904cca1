"""Attention on TPUs: JAX's splash attention, which skips blocks that no query sees.

What it lacks is added: lengths that are no multiple of its blocks, and queries that see
no key. Its forward and backward kernels keep no scores.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_masks,
)
from jaxtyping import Array, Float, Int

from jaxkd.kernels.attention.masks import Band, Tiles
from jaxkd.kernels.attention.scores import Scores

LANES = 128
"""Blocks are multiples of a TPU's lanes."""

BLOCK = 512

FILL = np.iinfo(np.int32).min
"""Segment of the tokens that fill the last block."""


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
    interpret: bool = False,
) -> Float[Array, "batch rows heads dim"]:
    """Return softmax(scores)·value over the keys that each query sees."""
    batch, rows, heads, _ = query.shape
    columns = key.shape[1]
    row_block, column_block = _block(band, rows), _block(band, columns)
    kernel = _kernel(
        band,
        heads,
        (rows + -rows % row_block, columns + -columns % column_block),
        (row_block, column_block),
        scores.soft_cap,
        interpret,
    )
    ids = None
    if row_segments is not None:
        other = row_segments if column_segments is None else column_segments
        ids = _fill(row_segments, row_block, FILL), _fill(other, column_block, FILL)
    elif columns % column_block and not band.causal:
        # Causal queries see nothing of what fills the last block: it comes after them.
        ids = tuple(
            _fill(jnp.zeros((batch, length), jnp.int32), block, FILL)
            for length, block in ((rows, row_block), (columns, column_block))
        )
    scaled = (query.astype(jnp.float32) * scores.scale).astype(query.dtype)
    q = _fill(scaled, row_block).swapaxes(1, 2)
    k, v = (_fill(x, column_block).swapaxes(1, 2) for x in (key, value))
    segments = None if ids is None else splash.SegmentIds(*ids)
    out: Any = jax.vmap(kernel, (0, 0, 0, 0, None))(q, k, v, segments, sinks)
    out = out.swapaxes(1, 2)[:, :rows]
    if row_segments is None or (column_segments is None and isinstance(band, Band)):
        # Every query sees itself.
        return out
    # The kernel gives a query that sees nothing the mean of what it does not see.
    other = row_segments if column_segments is None else column_segments
    seen = band.sees_any(row_segments, other).swapaxes(1, 2)[..., None]
    return jnp.where(seen, out, 0)


def _block(band: Band | Tiles, length: int) -> int:
    """Return the size of blocks: the window's, `BLOCK` at most, equally full."""
    blocks = math.ceil(length / band.block(LANES, BLOCK))
    return math.ceil(length / blocks / LANES) * LANES


def _fill(x: Array, block: int, value: int = 0) -> Array:
    """Return (batch, length, ...) with the length filled up to full blocks."""
    fill = [(0, 0)] * x.ndim
    fill[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, fill, constant_values=value)


class _Mask(splash_masks.Mask):
    """A rule as splash attention reads it."""

    def __init__(self, rule: Band | Tiles, shape: tuple[int, int]) -> None:
        self._rule, self._shape = rule, shape
        if isinstance(rule, Band):
            # With these the kernels compute the mask, and read no array.
            self.mask_function = rule.visible
            self.q_sequence = np.arange(shape[0], dtype=np.int32)

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def __getitem__(self, where: Any) -> np.ndarray:
        rows, columns = (
            np.arange(length, dtype=np.int32)[part]
            for length, part in zip(self._shape, where, strict=True)
        )
        seen = self._rule.visible(rows[:, None], columns[None])
        return seen.reshape(len(rows), len(columns))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Mask):
            return NotImplemented
        return (self._rule, self._shape) == (other._rule, other._shape)

    def __hash__(self) -> int:
        return hash((self._rule, self._shape))


@functools.lru_cache(maxsize=64)
def _kernel(
    band: Band | Tiles,
    heads: int,
    shape: tuple[int, int],
    blocks: tuple[int, int],
    soft_cap: float | None,
    interpret: bool,
) -> splash.SplashAttentionKernel:
    """Return the kernel of one example, its mask as NumPy arrays."""
    if band == Band():
        masks = [splash_masks.FullMask(shape)] * heads
    elif isinstance(band, Tiles):
        masks = [_Mask(band.head(head), shape) for head in range(heads)]
    else:
        masks = [_Mask(band, shape)] * heads
    rows, columns = blocks
    sizes = splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    # Arrays of no device and no mesh, which other programs can use as well.
    nowhere = jax.sharding.AbstractMesh((), ())
    with jax.ensure_compile_time_eval(), jax.sharding.use_abstract_mesh(nowhere):
        kernel = splash.make_splash_mha(
            splash_masks.MultiHeadMask(masks),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=soft_cap,
            interpret=interpret,
        )
    return jax.tree.map(np.asarray, kernel)
