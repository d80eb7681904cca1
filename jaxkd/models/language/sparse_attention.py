"""Self-attention to few keys a query, in memory that grows with the length.

Longformer's window with global tokens (Beltagy et al. 2020, arXiv:2004.05150), and
BigBird's neighbouring, global and random blocks (Zaheer et al. 2020, arXiv:2007.14062).
Queries go block by block; forward and backward hold the scores of one block at a time.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count
from jaxkd.kernels.attention import attention
from jaxkd.models.language.self_attention import HEADS, SelfAttention
from jaxkd.models.language.sequence import Everywhere, Sequence
from jaxkd.models.parts.linear import Linear
from jaxkd.sharding.axes import on_devices

FILL = np.iinfo(np.int32).min
"""Segment of what fills the last block up."""

LEAST = 64
"""Queries of a sliding window's block at least."""


@checked()
def by_blocks(
    query: Float[Array, "batch length heads dim"],
    block: int,
    keys: Callable[[Array], tuple[Array, Array, Array]],
) -> Float[Array, "batch length heads dim"]:
    """Return the attention of each block of queries to keys of its own.

    Args:
        query: of whole blocks.
        block: queries of one.
        keys: ``a block's number -> its keys and values (batch, columns, heads, dim),
            and who sees whom (batch, heads or 1, block, columns)``.
    """
    work = jnp.promote_types(query.dtype, jnp.float32)

    @jax.checkpoint
    def attend(number: Array) -> Array:
        key, value, seen = keys(number)
        rows = jax.lax.dynamic_slice_in_dim(query, number * block, block, 1)
        scores = jnp.einsum("brhd,bchd->bhrc", rows, key, preferred_element_type=work)
        scores = scores / math.sqrt(query.shape[-1])
        weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(work).min))
        weights = jnp.where(seen, weights, 0).astype(value.dtype)
        return jnp.einsum("bhrc,bchd->brhd", weights, value)

    numbers = jnp.arange(query.shape[1] // block)
    return rearrange(jax.lax.map(attend, numbers), "n b r h d -> b (n r) h d")


@checked(most=count)
def global_tokens(mask: Any, most: int) -> Everywhere:
    """Return where the tokens are that see and are seen everywhere.

    Args:
        mask: (batch, length), 1 for those.
        most: of a sequence.

    Raises:
        ValueError: a sequence has more. In a compiled program ``counted`` says so.
    """
    mask = jnp.asarray(mask) > 0
    counted = mask.sum(-1) <= most
    if not isinstance(mask, Tracer) and not counted.all():
        raise ValueError(
            f"global_attention_mask has {mask.sum(-1).max()} tokens in a sequence, but "
            f"this model is built for {most}: build it with more global_tokens"
        )
    chosen, places = jax.lax.top_k(mask.astype(jnp.int32), min(most, mask.shape[1]))
    return Everywhere(places, chosen > 0, mask, counted)


@checked(side=count)
def sliding_window_attention(
    query: Float[Array, "batch length heads dim"],
    key: Float[Array, "batch length heads dim"],
    value: Float[Array, "batch length heads dim"],
    side: int,
    everywhere: Everywhere,
    segments: Int[Array, "batch length"],
) -> Float[Array, "batch length heads dim"]:
    """Return one softmax over the keys near each query and the global ones.

    The rows of global tokens are not right: they see everything, by queries, keys and
    values of their own. Without global tokens `attention` with a window does the same.

    Args:
        query: of every token.
        key: of every token.
        value: of every token.
        side: keys before and after a query that it sees.
        everywhere: the global tokens.
        segments: queries see keys of their own.
    """
    length, block = query.shape[1], max(side, LEAST)
    fill = -length % block
    rows = _filled(segments, 0, fill, FILL)
    # A block's keys are its own, the block's before and the block's after.
    near = (
        _filled(key, block, fill + block),
        _filled(value, block, fill + block),
        _filled(jnp.where(everywhere.mask, FILL, segments), block, fill + block, FILL),
    )
    picked = [_at(x, everywhere.places) for x in (key, value, segments)]
    global_key, global_value, found = picked
    found = jnp.where(everywhere.chosen, found, FILL)
    offset = jnp.arange(3 * block) - block - jnp.arange(block)[:, None]
    band = jnp.abs(offset) <= side

    def keys(number: Array) -> tuple[Array, Array, Array]:
        start = number * block
        own = jax.lax.dynamic_slice_in_dim(rows, start, block, 1)[:, :, None]
        local_key, local_value, local = (
            jax.lax.dynamic_slice_in_dim(x, start, 3 * block, 1) for x in near
        )
        seen = jnp.concatenate(
            [own == found[:, None], band & (own == local[:, None])], -1
        )
        return (
            jnp.concatenate([global_key, local_key], 1),
            jnp.concatenate([global_value, local_value], 1),
            seen[:, None],
        )

    return by_blocks(_filled(query, 0, fill), block, keys)[:, :length]


@checked(block=count)
def bigbird_attention(
    query: Float[Array, "batch length heads dim"],
    key: Float[Array, "batch length heads dim"],
    value: Float[Array, "batch length heads dim"],
    block: int,
    random_blocks: Int[Array, "heads middle random"],
    segments: Int[Array, "batch length"],
) -> Float[Array, "batch length heads dim"]:
    """Return BigBird's attention among blocks.

    The first and the last block see all and are seen by all; the others see themselves,
    their neighbours and random ones. A block that comes up among the random ones though
    it is seen anyway counts twice in the softmax, as in transformers.

    Args:
        query: of every token.
        key: of every token.
        value: of every token.
        block: tokens of one. The last one is filled up with tokens that nobody sees.
        random_blocks: numbers of those that the blocks between the first and the last
            see, for each head.
        segments: queries see keys of their own.
    """
    length, heads = query.shape[1:3]
    fill = -length % block
    query, key, value = (_filled(x, 0, fill) for x in (query, key, value))
    segments = _filled(segments, 0, fill, FILL)
    blocks = segments.shape[1] // block
    cut = "b (n c) ... -> b n c ..."
    key_blocks, value_blocks, segment_blocks = (
        rearrange(x, cut, c=block) for x in (key, value, segments)
    )
    inner = segments[:, block:-block]
    by_head = jax.vmap(lambda x, numbers: x[:, numbers], (3, 0), 3)

    def keys(number: Array) -> tuple[Array, Array, Array]:
        i = number + 1
        seen_by_all = jnp.stack([0 * i, i - 1, i, i + 1, 0 * i + blocks - 1])
        once = jnp.stack([i > 0, i > 1, i > 0, i < blocks - 2, i > 0])
        drawn = random_blocks[:, number]
        fixed = jnp.broadcast_to(seen_by_all, (heads, 5))
        numbers = jnp.concatenate([fixed, drawn], 1)
        counts = jnp.pad(once, (0, drawn.shape[1]), constant_values=True)
        local_key, local_value = (
            rearrange(by_head(x, numbers), "b m c h d -> b (m c) h d")
            for x in (key_blocks, value_blocks)
        )
        own = jax.lax.dynamic_slice_in_dim(inner, number * block, block, 1)
        columns = rearrange(segment_blocks[:, numbers], "b h m c -> b h 1 (m c)")
        seen = (own[:, None, :, None] == columns) & jnp.repeat(counts, block)
        return local_key, local_value, seen

    middle = by_blocks(query[:, block:-block], block, keys)
    outer = [
        jnp.concatenate([x[:, :block], x[:, -block:]], 1) for x in (query, segments)
    ]
    ends = attention(outer[0], key, value, segment_ids=(outer[1], segments))
    first, last = jnp.split(ends, 2, axis=1)
    return jnp.concatenate([first, middle, last], 1)[:, :length]


class SlidingWindowAttention(SelfAttention):
    """Attention to tokens nearby, and of global tokens to all and of all to them.

    Args:
        width: as the heads and the implementation, see `SelfAttention`.
        heads: likewise.
        scale: deviation with which weights start.
        implementation: of what is attention by the kernel.
        window: tokens, half of them on each side.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        scale: float,
        implementation: str,
        *,
        window: int,
        rngs: nnx.Rngs,
    ):
        super().__init__(width, heads, False, (scale, scale), implementation, rngs=rngs)
        self.side = window // 2
        init = nnx.initializers.normal(scale)
        self.query_global, self.key_global, self.value_global = (
            Linear(width, width, axes=("embed", "heads"), kernel_init=init, rngs=rngs)
            for _ in range(3)
        )

    def among(
        self,
        x: Float[Array, "batch length width"],
        query: Float[Array, "batch length heads dim"],
        key: Float[Array, "batch length heads dim"],
        value: Float[Array, "batch length heads dim"],
        tokens: Sequence,
        layer: Any,
    ) -> Float[Array, "batch length heads dim"]:
        """Return what every token gathers; of global ones by their own projections."""
        del layer
        found, segments = tokens.everywhere, tokens.segments
        if found is None:
            return self.gather(query, key, value, segments, window=self.side)
        if segments is None:
            segments = jnp.zeros(x.shape[:2], jnp.int32)

        def local(query, key, value, segments, *found) -> Array:
            found = Everywhere(*found)
            return sliding_window_attention(
                query, key, value, self.side, found, segments
            )

        batch = ("batch", None)
        out = on_devices(
            local,
            (query, key, value, segments, *found),
            (HEADS, HEADS, HEADS, batch, batch, batch, batch, ("batch",)),
        )
        rows = self.gather(
            self.by_heads(self.query_global(_at(x, found.places))),
            self.by_heads(self.key_global(x)),
            self.by_heads(self.value_global(x)),
            (_at(segments, found.places), segments),
        )
        place = jnp.arange(len(x))[:, None], found.places
        rows = jnp.where(found.chosen[:, :, None, None], rows, out[place])
        out = out.at[place].set(rows)
        return jnp.where(found.counted[:, None, None, None], out, jnp.nan)


class BlockSparseAttention(SelfAttention):
    """Attention to neighbouring, global and random blocks, or full among few.

    Args:
        width: as the others, see `SlidingWindowAttention`.
        heads: likewise.
        scale: likewise.
        implementation: likewise.
        block: tokens of one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        scale: float,
        implementation: str,
        *,
        block: int,
        rngs: nnx.Rngs,
    ):
        super().__init__(width, heads, False, (scale, scale), implementation, rngs=rngs)
        self.block = block

    def among(
        self,
        x: Float[Array, "batch length width"],
        query: Float[Array, "batch length heads dim"],
        key: Float[Array, "batch length heads dim"],
        value: Float[Array, "batch length heads dim"],
        tokens: Sequence,
        layer: Any,
    ) -> Float[Array, "batch length heads dim"]:
        """Return what every token gathers by this layer's random blocks."""
        if tokens.random_blocks is None:
            return super().among(x, query, key, value, tokens, layer)
        segments = tokens.segments
        if segments is None:
            segments = jnp.zeros(x.shape[:2], jnp.int32)

        def local(query, key, value, random_blocks, segments) -> Array:
            return bigbird_attention(
                query, key, value, self.block, random_blocks, segments
            )

        return on_devices(
            local,
            (query, key, value, tokens.random_blocks[layer], segments),
            (HEADS, HEADS, HEADS, ("heads", None, None), ("batch", None)),
        )


def _at(x: Array, places: Array) -> Array:
    """Return the tokens (batch, places, ...) of x (batch, length, ...)."""
    return x[jnp.arange(len(x))[:, None], places]


def _filled(x: Array, before: int, after: int, value: int = 0) -> Array:
    """Return x (batch, length, ...) with so much before and after its tokens."""
    fill = [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, fill, constant_values=value)
