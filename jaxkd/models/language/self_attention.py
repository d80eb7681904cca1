"""Self-attention of GPT-2 and BERT: as many keys as queries, and biases."""

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
            constrain(rearrange(part(x), "b l (h d) -> b l h d", h=self.heads), *HEADS)
            for part in (self.query, self.key, self.value)
        )
        if cache is not None:
            cache = cache.put(layer, key, value)
        if cache is None or tokens.visible is None:
            gathered = self._among(query, key, value, tokens.segments)
        else:
            gathered = attend(query, *cache.layer(layer), tokens.visible)
        return self.out(rearrange(gathered, "b l h d -> b l (h d)")), cache

    def _among(self, query: Array, key: Array, value: Array, segments: Array | None):
        """Return attention among these tokens alone, each device for its part."""

        def local(query, key, value, segments) -> Array:
            return attention(
                query,
                key,
                value,
                causal=self.causal,
                segment_ids=segments,
                implementation=self.implementation,
            )

        where = (HEADS, HEADS, HEADS, ("batch", None))
        return on_devices(local, (query, key, value, segments), where)
