"""The attention of every decoder: windows, rotations, caps and sinks, layer by layer.

Stacked layers are one compiled loop whatever their kinds: a layer's rotations are a row
of a table, and its window, which the kernels must know when they are compiled, chooses
a branch (`jax.lax.switch`) around the attention alone, of which one runs. A scan by
periods would compile a period's layers and need a second loop for what is left over.
Compiled for a TPU v5e, the gradient of 4 layers with a window in every other one, at
2,048 tokens: temporaries of 534 MiB, where 4 alike need 525 (27 and 33 by ``remat``).
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxkd.arguments import checked
from jaxkd.kernels.attention import attention
from jaxkd.models.language.cache import KVCache, attend
from jaxkd.models.language.llama_config import Config
from jaxkd.models.language.rope import rotate
from jaxkd.models.language.sequence import Sequence
from jaxkd.sharding.axes import constrain, declare, on_devices

HEADS = ("batch", None, "heads", None)


@checked()
def by_heads(
    config: Config,
    features: Float[Array, "batch length heads_dim"],
    positions: Int[Array, "batch length"] | None = None,
    norm: nnx.Module | None = None,
    layer: int | Int[Array, ""] = 0,
) -> Float[Array, "batch length heads dim"]:
    """Return queries, keys or values by head, normalised, turned to their positions.

    Args:
        config: of the model.
        features: of all heads.
        positions: None for values, which are not turned.
        norm: of each head's features, or of all, or None.
        layer: whose rotations they are.
    """
    if norm is not None and config.qk_norm == "whole":
        features, norm = norm(features), None
    x = rearrange(features, "b l (h d) -> b l h d", d=config.head_dim)
    if norm is not None:
        x = norm(x)
    if positions is not None:
        x = rotate(x, positions, *config.rotations(layer))
    return constrain(x, *HEADS)


@checked()
def attend_causally(
    config: Config,
    query: Float[Array, "batch length heads dim"],
    key: Float[Array, "batch length kv_heads dim"],
    value: Float[Array, "batch length kv_heads dim"],
    segments: Int[Array, "batch length"] | None,
    layer: int | Int[Array, ""] = 0,
    sinks: Float[Array, "heads"] | None = None,
) -> Float[Array, "batch length heads dim"]:
    """Return causal attention among these tokens alone, each device for its part."""

    def within(window: int | None, *arrays: Array | None) -> Array:
        def local(query, key, value, segments, sinks) -> Array:
            return attention(
                query,
                key,
                value,
                causal=True,
                window=None if window is None else window - 1,
                segment_ids=segments,
                scale=config.scores.scale,
                soft_cap=config.scores.soft_cap,
                sinks=sinks,
                implementation=config.implementation,
            )

        axes = (HEADS, HEADS, HEADS, ("batch", None), ("heads",))
        return on_devices(local, arrays, axes)

    arrays, windows = (query, key, value, segments, sinks), config.windows
    if len(windows) == 1:
        return within(windows[0], *arrays)
    branches = [partial(within, window) for window in windows]
    return jax.lax.switch(config.window_number(layer), branches, *arrays)


@checked()
def attend_to_slots(
    config: Config,
    query: Float[Array, "batch tokens heads dim"],
    key: Float[Array, "batch slots kv_heads dim"],
    value: Float[Array, "batch slots kv_heads dim"],
    visible: Bool[Array, "*windows batch tokens slots"],
    layer: int | Int[Array, ""] = 0,
    sinks: Float[Array, "heads"] | None = None,
) -> Float[Array, "batch tokens heads dim"]:
    """Return attention to the slots of a cache that are visible within the window."""
    if visible.ndim > 3:
        visible = visible[config.window_number(layer)]
    return attend(query, key, value, visible, config.scores, sinks)


class Attention(nnx.Module):
    """Causal self-attention whose key-value heads serve several query heads each."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width, dim, bias = config.width, config.head_dim, config.qkv_bias
        features, shared = config.heads * dim, config.kv_heads * dim
        into, back = ("embed", "heads"), ("heads", "embed")
        self.query = config.linear(width, features, into, bias=bias, rngs=rngs)
        self.key = config.linear(width, shared, into, bias=bias, rngs=rngs)
        self.value = config.linear(width, shared, into, bias=bias, rngs=rngs)
        self.out = config.linear(features, width, back, bias=config.out_bias, rngs=rngs)
        of_query, of_key = (
            (features, shared) if config.qk_norm == "whole" else 2 * (dim,)
        )
        norms = config.qk_norm
        self.query_norm = config.norm(of_query, rngs=rngs) if norms else None
        self.key_norm = config.norm(of_key, rngs=rngs) if norms else None
        start = jnp.zeros(config.heads)
        self.sinks = nnx.Param(start, **declare("heads")) if config.sinks else None

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
            cache: to write keys and values to, and returned.
            layer: number of it among all, and in the cache.
        """
        config, positions = self.config, tokens.positions
        query = by_heads(config, self.query(x), positions, self.query_norm, layer)
        key = by_heads(config, self.key(x), positions, self.key_norm, layer)
        value = by_heads(config, self.value(x))
        sinks = None if self.sinks is None else self.sinks[...]
        if cache is not None:
            cache = cache.put(layer, key, value)
        if cache is None or tokens.visible is None:
            of = tokens.segments, layer, sinks
            gathered = attend_causally(config, query, key, value, *of)
        else:
            of = tokens.visible, layer, sinks
            gathered = attend_to_slots(config, query, *cache.layer(layer), *of)
        return self.out(rearrange(gathered, "b l h d -> b l (h d)")), cache
