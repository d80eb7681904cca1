"""The inputs of language models: tokens, where they stand, and what they see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxkd.models.language.cache import KVCache

READS = ("input_ids", "attention_mask", "segment_ids", "position_ids")
"""The keys of a batch that decoders of text take; see `sequence`."""


@dataclass(frozen=True)
class Sequence:
    """What blocks know of the tokens beside their features.

    Attributes:
        positions: (batch, length), for the rotations.
        segments: (batch, length), tokens see those of their own segment alone; None
            where all are of one.
        visible: (batch, length, slots), which slots of a cache each sees; None where
            there is nothing before these tokens.
    """

    positions: Int[Array, "batch length"]
    segments: Int[Array, "batch length"] | None
    visible: Bool[Array, "batch length slots"] | None = None


def token_ids(
    inputs: Mapping[str, Any], name: str = "input_ids"
) -> Int[Array, "batch length"]:
    """Return the tokens of the inputs.

    Args:
        inputs: of a language model.
        name: of the tokens among them.

    Raises:
        ValueError: tokens that are missing or have another shape.
    """
    if not isinstance(inputs, Mapping) or name not in inputs:
        given = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise ValueError(
            f"a language model reads a dict with {name} (batch, length), got {given}"
        )
    ids = jnp.asarray(inputs[name])
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers of shape (batch, length), got {ids.dtype} of "
            f"shape {ids.shape}"
        )
    return ids


def sequence(
    inputs: Mapping[str, Any], cache: KVCache | None, window: int | None = None
) -> Sequence:
    """Return what is known of the tokens of the inputs.

    Args:
        inputs: of a language model.
        cache: that has admitted them, or None.
        window: tokens that one sees, itself included; None for all.
    """
    ids = token_ids(inputs)
    continued = cache if inputs.get("cache") is not None else None
    positions = inputs.get("position_ids")
    if positions is None:
        first = 0 if continued is None else continued.length
        positions = jnp.broadcast_to(first + jnp.arange(ids.shape[1]), ids.shape)
    if continued is not None:
        return Sequence(positions, None, continued.visible(ids.shape[1], window))
    segments = inputs.get("segment_ids")
    if inputs.get("attention_mask") is not None:
        real = jnp.asarray(inputs["attention_mask"], jnp.int32)
        # Padding is a segment of its own.
        segments = real if segments is None else jnp.where(real, segments, -1)
    return Sequence(jnp.asarray(positions), segments)


def open_cache(
    inputs: Mapping[str, Any],
    taps: tuple[str, ...],
    layers: int,
    kv_heads: int,
    dim: int,
    dtype: Any,
) -> KVCache | None:
    """Return the cache that has admitted the tokens, None if none is asked for.

    Args:
        inputs: of a language model, with ``cache`` if tokens were read before.
        taps: with ``cache`` if there is to be one.
        layers: of a new cache.
        kv_heads: likewise.
        dim: likewise, of a head.
        dtype: likewise.

    Raises:
        ValueError: a cache without room for the tokens, or of packed sequences.
    """
    ids, cache = token_ids(inputs), inputs.get("cache")
    if cache is None and "cache" not in taps:
        return None
    if "segment_ids" in inputs:
        raise ValueError(
            "segment_ids with a cache: a row of a cache is one sequence, so give every "
            "packed sequence a row of its own"
        )
    if cache is None:
        batch, length = ids.shape
        cache = KVCache.empty(layers, batch, length, kv_heads, dim, dtype)
    mask = inputs.get("attention_mask")
    return cache.admit(jnp.ones(ids.shape, bool) if mask is None else mask > 0)
