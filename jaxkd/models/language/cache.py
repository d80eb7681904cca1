"""What a decoder keeps of the tokens it has read, so that it reads them once.

A model with the tap ``cache`` returns one of what it has read; given back as
``inputs["cache"]`` with the tokens that follow, the model goes on from there. All rows
of a batch write at the same slot, so prompts of unequal lengths are padded before them.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from jaxkd.arguments import checked
from jaxkd.kernels.attention.scores import Scores
from jaxkd.sharding.axes import constrain
from jaxkd.types import Axes

AXES = (None, "batch", "heads", None, None)
CACHE_AXES: Axes = {("cache", part): AXES for part in ("key", "value")}
"""Of a `KVCache` that a state holds as ``cache``, to go beside `Network.axes`."""


@flax.struct.dataclass
class KVCache:
    """The keys and values of every layer's attention.

    A forward pass first `admit`s its tokens, then every layer `put`s their keys and
    values and reads `layer`, and at the end the tokens are `passed`.

    Attributes:
        key: (layers, batch, kv_heads, slots, dim), rotated to their positions; in this
            order since every head's product reads its own slots.
        value: likewise; without features where keys are latents, which are both.
        real: (batch, slots), false where a slot holds padding or nothing yet.
        length: slots written, of every row, an int32 scalar.
        key_scale: (layers,), what keys of a `quantized` cache are multiplied by; None
            for one that holds them as they are.
        value_scale: likewise of the values.
    """

    key: Any
    value: Any
    real: Any
    length: Any
    key_scale: Any = None
    value_scale: Any = None

    @classmethod
    def empty(
        cls,
        layers: int,
        batch: int,
        slots: int,
        kv_heads: int,
        dim: int,
        dtype: Any = jnp.float32,
        value_dim: int | None = None,
    ) -> "KVCache":
        """Return a cache with room for ``slots`` tokens a row.

        Args:
            layers: of the model.
            batch: rows.
            slots: of each.
            kv_heads: of keys and values.
            dim: of a head's keys.
            dtype: of both.
            value_dim: of a head's values, 0 where they are in the keys; None for
                ``dim``.
        """
        key, value = (
            constrain(jnp.zeros((layers, batch, kv_heads, slots, width), dtype), *AXES)
            for width in (dim, dim if value_dim is None else value_dim)
        )
        real = jnp.zeros((batch, slots), bool)
        return cls(key, value, real, jnp.zeros((), jnp.int32))

    def grown(self, slots: int) -> "KVCache":
        """Return the cache with room for as many more tokens."""

        def pad(x: Array, axis: int) -> Array:
            return jnp.pad(x, [(0, slots * (i == axis)) for i in range(x.ndim)])

        return dataclasses.replace(
            self,
            key=constrain(pad(self.key, 3), *AXES),
            value=constrain(pad(self.value, 3), *AXES),
            real=pad(self.real, 1),
        )

    def quantized(self, dtype: Any) -> "KVCache":
        """Return the cache in 8 bits a number, with one scale a layer for each kind.

        Scales are those of what has been written, as a rule a prompt; what is written
        later and is larger is clipped.

        Args:
            dtype: ``jnp.int8``, ``jnp.float8_e4m3fn`` or another of 8 bits.
        """
        (key, key_scale), (value, value_scale) = (
            jax.vmap(lambda layer: quantize_kv(layer, dtype))(x)
            for x in (self.key, self.value)
        )
        return dataclasses.replace(
            self, key=key, value=value, key_scale=key_scale, value_scale=value_scale
        )

    def admit(self, real: Bool[Array, "batch tokens"]) -> "KVCache":
        """Return the cache with the next slots taken by tokens, false for padding.

        Raises:
            ValueError: there is no room for them, or another number of rows. Under
                `jax.jit` only room that never was there is noticed.
        """
        rows, slots = self.real.shape
        if real.shape[0] != rows:
            raise ValueError(
                f"the cache is of {rows} rows, but the tokens of {real.shape[0]}"
            )
        written = 0 if isinstance(self.length, Tracer) else int(self.length)
        if written + real.shape[1] > slots:
            raise ValueError(
                f"the cache has {slots} slots, {written} of them taken: there is no "
                f"room for {real.shape[1]} more tokens; call cache.grown(tokens)"
            )
        marked = lax.dynamic_update_slice(self.real, real, (0, self.length))
        return dataclasses.replace(self, real=marked)

    def put(
        self,
        layer: int | Int[Array, ""],
        key: Float[Array, "batch tokens kv_heads dim"],
        value: Float[Array, "batch tokens kv_heads value_dim"],
    ) -> "KVCache":
        """Return the cache with the admitted tokens' keys and values of a layer."""
        at = (layer, 0, 0, self.length, 0)

        def write(kept: Array, new: Array, scale: Array | None) -> Array:
            if scale is not None:
                new = _encode(new, scale[layer], kept.dtype)
            new = new.swapaxes(1, 2)[None].astype(kept.dtype)
            written = constrain(lax.dynamic_update_slice(kept, new, at), *AXES)
            # XLA would keep a slot of all heads together, and turn every layer around.
            return with_layout_constraint(written, Layout(tuple(range(written.ndim))))

        return dataclasses.replace(
            self,
            key=write(self.key, key, self.key_scale),
            value=write(self.value, value, self.value_scale),
        )

    def layer(self, layer: int | Int[Array, ""]) -> tuple[Array, Array]:
        """Return a layer's keys and values, (batch, slots, kv_heads, dim)."""

        def read(kept: Array, scale: Array | None) -> Array:
            x = lax.dynamic_index_in_dim(kept, layer, keepdims=False).swapaxes(1, 2)
            return x if scale is None else dequantize_kv(x, scale[layer])

        return read(self.key, self.key_scale), read(self.value, self.value_scale)

    def visible(
        self,
        tokens: int,
        window: int | None = None,
        kept: Int[Array, "kept"] | None = None,
    ) -> Bool[Array, "batch kept slots"]:
        """Return which slots each of the admitted tokens sees: none after its own.

        Args:
            tokens: that were admitted.
            window: real tokens that one sees, itself included; None for all.
            kept: places of the tokens that matter; None for all.
        """
        slot = jnp.arange(self.real.shape[1])
        own = self.length + (jnp.arange(tokens) if kept is None else kept)
        seen = self.real[:, None] & (slot <= own[:, None])
        if window is None:
            return seen
        order = jnp.cumsum(self.real, axis=1)
        return seen & (order[:, None] > order[:, own, None] - window)

    def passed(self, tokens: int) -> "KVCache":
        """Return the cache with its admitted tokens written by every layer."""
        return dataclasses.replace(self, length=self.length + tokens)


@checked()
def attend(
    query: Float[Array, "batch tokens heads dim"],
    key: Float[Array, "batch slots kv_heads dim"],
    value: Float[Array, "batch slots kv_heads dim"],
    visible: Bool[Array, "batch tokens slots"],
    scores: Scores | None = None,
    sinks: Float[Array, "heads"] | None = None,
) -> Float[Array, "batch tokens heads dim"]:
    """Attend to the slots of a cache, as `jaxkd.kernels.attention` does to keys.

    For few tokens and many slots: every score is held.

    Args:
        query: as many heads as the key, or a multiple.
        key: of one layer.
        value: likewise.
        visible: which slots a token sees.
        scores: how products are scored; None divides them by √dim.
        sinks: a logit of each head without a value, or None.

    Returns:
        In the query's dtype, softmax in float32; 0 where a token sees nothing.
    """
    batch, tokens, heads, dim = query.shape
    kv_heads = key.shape[2]
    work = jnp.promote_types(query.dtype, jnp.float32)
    key, value = key.astype(query.dtype), value.astype(query.dtype)
    grouped = query.reshape(batch, tokens, kv_heads, heads // kv_heads, dim)
    score = scores or Scores(dim**-0.5)
    logits = score(_product("btkgd,bskd->bkgts", grouped, key, work))
    mask = visible[:, None, None]
    if sinks is None:
        weights = jax.nn.softmax(logits, axis=-1, where=mask)
    else:
        own = sinks.astype(work).reshape(kv_heads, -1, 1, 1)
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True, where=mask)
        weights = jnp.where(mask, jnp.exp(logits - jnp.logaddexp(total, own)), 0)
    weights = jnp.where(mask.any(-1, keepdims=True), weights, 0).astype(value.dtype)
    found = _product("bkgts,bskd->btkgd", weights, value, work)
    return found.reshape(query.shape).astype(query.dtype)


def _product(form: str, a: Array, b: Array, dtype: Any) -> Array:
    """Return a product that is summed, and given, in a wider dtype.

    CPUs cannot run every such product of bfloat16, and get wider factors.
    """

    def narrow(a: Array, b: Array) -> Array:
        return jnp.einsum(form, a, b, preferred_element_type=dtype)

    def wide(a: Array, b: Array) -> Array:
        return jnp.einsum(form, a.astype(dtype), b.astype(dtype))

    return lax.platform_dependent(a, b, cpu=wide, default=narrow)


def quantize_kv(
    x: Array, dtype: Any = jnp.float8_e4m3fn
) -> tuple[Array, Float[Array, ""]]:
    """Return keys or values in 8 bits a number, and the scale of them all.

    Args:
        x: its largest magnitude becomes the largest number of ``dtype``.
        dtype: ``jnp.float8_e4m3fn``, ``jnp.int8`` or another of 8 bits.

    Raises:
        ValueError: x is not of floats, or ``dtype`` not of 8 bits.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be of floats, got {x.dtype}")
    if jnp.dtype(dtype).itemsize != 1:
        raise ValueError(
            f"dtype must have 8 bits, such as float8_e4m3fn or int8, got {dtype}"
        )
    largest = jnp.abs(x).max(initial=0).astype(jnp.float32)
    scale = jnp.where(largest > 0, largest / _limit(dtype), 1)
    return _encode(x, scale, dtype), scale


def dequantize_kv(codes: Array, scale: Float[Array, ""]) -> Float[Array, "*shape"]:
    """Return what `quantize_kv` rounded, in float32.

    Args:
        codes: of 8 bits.
        scale: of them all.
    """
    return codes.astype(jnp.float32) * scale


def _encode(x: Array, scale: Array, dtype: Any) -> Array:
    limit = _limit(dtype)
    y = jnp.clip(x.astype(jnp.float32) / scale, -limit, limit)
    return (jnp.round(y) if jnp.issubdtype(dtype, jnp.integer) else y).astype(dtype)


def _limit(dtype: Any) -> float:
    integer = jnp.issubdtype(dtype, jnp.integer)
    return float(jnp.iinfo(dtype).max if integer else jnp.finfo(dtype).max)
