"""Self-attention of GPT-2 and BERT: as many keys as queries, and biases."""

from typing import Any

from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.kernels.attention import attention
from jaxkd.models.language.cache import KVCache, attend
from jaxkd.models.language.sequence import Sequence
from jaxkd.models.parts.linear import Linear
from jaxkd.sharding.axes import constrain, on_devices

HEADS = ("batch", None, "heads", None)


class SelfAttention(nnx.Module):
    """Multi-head attention among the tokens of a sequence.

    Args:
        width: features of a token.
        heads: that share it.
        causal: whether tokens see none after them.
        scales: deviations with which the projections of queries, keys and values start,
            and the one after the heads.
        implementation: see `jaxkd.kernels`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool,
        scales: tuple[float, float],
        implementation: str,
        *,
        rngs: nnx.Rngs,
    ):
        self.heads, self.causal, self.implementation = heads, causal, implementation
        start, end = (nnx.initializers.normal(scale) for scale in scales)
        into, back = ("embed", "heads"), ("heads", "embed")
        self.query, self.key, self.value, self.out = (
            Linear(width, width, axes=axes, kernel_init=init, rngs=rngs)
            for init, axes in (*3 * [(start, into)], (end, back))
        )

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Sequence,
        cache: KVCache | None = None,
        layer: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "batch length width"], KVCache | None]:
        """Return what every token gathers.

        Args:
            x: features.
            tokens: what is known of them.
            cache: to write keys and values to, and returned.
            layer: of the cache.
        """
        query, key, value = (
            self.by_heads(part(x)) for part in (self.query, self.key, self.value)
        )
        if cache is not None:
            cache = cache.put(layer, key, value)
        if cache is None or tokens.visible is None:
            gathered = self.among(x, query, key, value, tokens, layer)
        else:
            gathered = attend(query, *cache.layer(layer), tokens.visible)
        return self.out(rearrange(gathered, "b l h d -> b l (h d)")), cache

    def by_heads(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length heads dim"]:
        """Return queries, keys or values cut into heads."""
        return constrain(rearrange(x, "b l (h d) -> b l h d", h=self.heads), *HEADS)

    def among(
        self,
        x: Float[Array, "batch length width"],
        query: Float[Array, "batch length heads dim"],
        key: Float[Array, "batch length heads dim"],
        value: Float[Array, "batch length heads dim"],
        tokens: Sequence,
        layer: int | Int[Array, ""],
    ) -> Float[Array, "batch length heads dim"]:
        """Return attention among these tokens alone; sparse forms have their own.

        Args:
            x: features.
            query: by heads, as the key and the value.
            key: likewise.
            value: likewise.
            tokens: what is known of them.
            layer: number of the block.
        """
        del x, layer
        return self.gather(query, key, value, tokens.segments)

    def gather(
        self,
        query: Float[Array, "batch rows heads dim"],
        key: Float[Array, "batch columns heads dim"],
        value: Float[Array, "batch columns heads dim"],
        segments: Any,
        window: int | None = None,
    ) -> Float[Array, "batch rows heads dim"]:
        """Return attention by the kernel, each device for its part.

        Args:
            query: by heads.
            key: by heads.
            value: by heads.
            segments: (batch, length), or a pair of the queries' and the keys', or None.
            window: tokens on each side that one sees; None for all.
        """
        pair = segments if isinstance(segments, tuple) else (segments, None)

        def local(query, key, value, rows, columns) -> Array:
            return attention(
                query,
                key,
                value,
                causal=self.causal,
                window=window,
                segment_ids=rows if columns is None else (rows, columns),
                implementation=self.implementation,
            )

        batch = ("batch", None)
        where = (HEADS, HEADS, HEADS, batch, batch)
        return on_devices(local, (query, key, value, *pair), where)
