"""Multi-head latent attention: keys and values of all heads from one small latent.

MLA, DeepSeek-AI 2024, arXiv:2405.04434, Section 2.1. A cache keeps the latent and the
one key that is turned to its position, and cached tokens are attended to as they are:
what makes keys and values of latents is multiplied into queries and outputs.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.kernels.quant_matmul import QuantizedWeights, dequantize
from jaxkd.models.language.cache import KVCache
from jaxkd.models.language.llama_attention import (
    HEADS,
    attend_causally,
    attend_to_slots,
)
from jaxkd.models.language.llama_config import Config
from jaxkd.models.language.rope import rotate
from jaxkd.models.language.sequence import Sequence
from jaxkd.sharding.axes import constrain

EPSILON = 1e-6
"""Of the latents' norms, whatever the model's other norms have."""


class LatentAttention(nnx.Module):
    """Causal self-attention whose keys and values are made of latents."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        assert config.latent is not None
        self.config, self.latent = config, config.latent
        width, heads, latent = config.width, config.heads, config.latent
        rank, query_rank = latent.rank, latent.query_rank
        # Latents are split as the residual stream's features are, or every device would
        # have all of what reads them.
        into, back = ("embed", "heads"), ("heads", "embed")
        if query_rank is not None:
            down = ("embed", None)
            self.query_down = config.linear(width, query_rank, down, rngs=rngs)
            self.query_norm = nnx.RMSNorm(query_rank, epsilon=EPSILON, rngs=rngs)
        features = heads * latent.key_dim
        self.query = config.linear(query_rank or width, features, into, rngs=rngs)
        self.down = config.linear(
            width, rank + latent.turned, ("embed", None), rngs=rngs
        )
        self.norm = nnx.RMSNorm(rank, epsilon=EPSILON, rngs=rngs)
        features = heads * (latent.plain + latent.value)
        self.up = config.linear(rank, features, into, rngs=rngs)
        self.out = config.linear(heads * latent.value, width, back, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Sequence,
        cache: KVCache | None = None,
        layer: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "batch length width"], KVCache | None]:
        """Return what every token gathers from itself and those before it.

        Args:
            x: features, normalised.
            tokens: what is known of them.
            cache: to write latents to, and returned.
            layer: number of it among all, and in the cache.
        """
        sizes, heads = self.latent, self.config.heads
        low = x if sizes.query_rank is None else self.query_norm(self.query_down(x))
        query = rearrange(self.query(low), "b l (h d) -> b l h d", h=heads)
        query, turned_query = jnp.split(query, [sizes.plain], axis=-1)
        latent, turned_key = jnp.split(self.down(x), [sizes.rank], axis=-1)
        latent = self.norm(latent)
        turned_query, turned_key = (
            self._turned(part, tokens, layer)
            for part in (turned_query, turned_key[:, :, None])
        )
        if cache is not None:
            kept = jnp.concatenate([latent[:, :, None], turned_key], axis=-1)
            # The latent is the value too.
            cache = cache.put(layer, kept, kept[..., :0])
        if cache is None or tokens.visible is None:
            made = rearrange(self.up(latent), "b l (h d) -> b l h d", h=heads)
            key, value = jnp.split(made, [sizes.plain], axis=-1)
            turned_key = jnp.broadcast_to(turned_key, turned_query.shape)
            query, key = (
                constrain(jnp.concatenate(parts, axis=-1), *HEADS)
                for parts in ((query, turned_query), (key, turned_key))
            )
            more = sizes.key_dim - sizes.value  # Kernels take values as wide as keys.
            value = constrain(jnp.pad(value, [*3 * [(0, 0)], (0, more)]), *HEADS)
            of = tokens.segments, layer
            found = attend_causally(self.config, query, key, value, *of)
            found = found[..., : sizes.value]
        else:
            kernel = self.up.kernel.get_value()
            if isinstance(kernel, QuantizedWeights):
                kernel = dequantize(kernel, x.dtype)
            kernel = rearrange(kernel.astype(x.dtype), "r (h d) -> r h d", h=heads)
            of_key, of_value = jnp.split(kernel, [sizes.plain], axis=-1)
            query = jnp.einsum("blhd,rhd->blhr", query, of_key)
            query = jnp.concatenate([query, turned_query], axis=-1)
            kept, _ = cache.layer(layer)
            of = tokens.visible, layer
            found = attend_to_slots(self.config, query, kept, kept, *of)
            found = found[..., : sizes.rank]
            found = jnp.einsum("blhr,rhd->blhd", found, of_value)
        return self.out(rearrange(found, "b l h d -> b l (h d)")), cache

    def _turned(
        self,
        x: Float[Array, "batch length heads dim"],
        tokens: Sequence,
        layer: int | Int[Array, ""],
    ) -> Float[Array, "batch length heads dim"]:
        """Return queries or keys turned to their positions."""
        if self.latent.interleaved:
            x = rearrange(x, "b l h (pairs two) -> b l h (two pairs)", two=2)
        return rotate(x, tokens.positions, *self.config.rotations(layer))
