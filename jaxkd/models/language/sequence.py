"""The inputs of language models: tokens, where they stand, and what they see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.models.language.cache import KVCache
from jaxkd.models.parts.linear import on_rows
from jaxkd.sharding.axes import constrain
from jaxkd.types import Outputs

READS = ("input_ids", "attention_mask", "segment_ids", "position_ids")
"""The keys of a batch that decoders of text take; see `sequence`."""


class Everywhere(NamedTuple):
    """The tokens of sequences that see and are seen everywhere.

    Attributes:
        places: of as many tokens as a sequence may have of them.
        chosen: which of these are; the other places only fill up.
        mask: the same by token.
        counted: a sequence has no more.
    """

    places: Int[Array, "batch most"]
    chosen: Bool[Array, "batch most"]
    mask: Bool[Array, "batch length"]
    counted: Bool[Array, " batch"]


@dataclass(frozen=True)
class Sequence:
    """What blocks know of the tokens beside their features.

    Attributes:
        positions: (batch, length), for the rotations.
        segments: (batch, length), tokens see those of their own segment alone; None
            where all are of one.
        visible: (batch, length, slots), which slots of a cache each sees, one after
            another for each window if there are several; None where there is nothing
            before these tokens.
        everywhere: tokens that see and are seen beyond a window; None for none.
        random_blocks: (layers, heads, blocks, random) that blocks of sparse attention
            see beside their neighbours; None where they see all.
    """

    positions: Int[Array, "batch length"]
    segments: Int[Array, "batch length"] | None
    visible: Bool[Array, "... batch length slots"] | None = None
    everywhere: Everywhere | None = None
    random_blocks: Int[Array, "layers heads blocks random"] | None = None


@checked()
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


@checked()
def sequence(
    inputs: Mapping[str, Any],
    shape: tuple[int, ...],
    cache: KVCache | None,
    windows: tuple[int | None, ...] = (None,),
) -> Sequence:
    """Return what is known of the tokens of the inputs.

    Args:
        inputs: of a language model.
        shape: (batch, length, …) of the tokens or their features.
        cache: that has admitted them, or None.
        windows: of the layers, each once: tokens that one sees, itself included; None
            for all.
    """
    batch, length, *_ = shape
    continued = cache if inputs.get("cache") is not None else None
    positions = inputs.get("position_ids")
    if positions is None:
        first = 0 if continued is None else continued.length
        positions = jnp.broadcast_to(first + jnp.arange(length), (batch, length))
    if continued is not None:
        visible = [continued.visible(length, window) for window in windows]
        return Sequence(
            positions, None, jnp.stack(visible) if visible[1:] else visible[0]
        )
    segments = inputs.get("segment_ids")
    if inputs.get("attention_mask") is not None:
        real = jnp.asarray(inputs["attention_mask"], jnp.int32)
        # Padding is a segment of its own.
        segments = real if segments is None else jnp.where(real, segments, -1)
    return Sequence(jnp.asarray(positions), segments)


@checked()
def open_cache(
    inputs: Mapping[str, Any],
    x: Float[Array, "batch length width"],
    taps: tuple[str, ...],
    layers: int,
    kv_heads: int,
    dim: int,
    value_dim: int | None = None,
) -> KVCache | None:
    """Return the cache that has admitted the tokens, None if none is asked for.

    Args:
        inputs: of a language model, with ``cache`` if tokens were read before.
        x: features of the tokens, whose dtype a new cache has.
        taps: with ``cache`` if there is to be one.
        layers: of a new cache.
        kv_heads: of a new cache.
        dim: of a new cache's keys.
        value_dim: of its values; None for ``dim``.

    Raises:
        ValueError: a cache without room for the tokens, or of packed sequences.
    """
    (batch, length, _), cache = x.shape, inputs.get("cache")
    if cache is None and "cache" not in taps:
        return None
    if "segment_ids" in inputs:
        raise ValueError(
            "segment_ids with a cache: a row of a cache is one sequence, so give every "
            "packed sequence a row of its own"
        )
    if cache is None:
        sizes = layers, batch, length, kv_heads, dim
        cache = KVCache.empty(*sizes, x.dtype, value_dim)
    mask = inputs.get("attention_mask")
    return cache.admit(jnp.ones((batch, length), bool) if mask is None else mask > 0)


@checked()
def kept_norm(
    norm: nnx.Module, x: Float[Array, "batch length width"], inputs: Mapping[str, Any]
) -> Float[Array, "batch kept width"]:
    """Return normalised features, of ``logits_to_keep`` alone if it is there."""
    kept = inputs.get("logits_to_keep")
    return norm(x if kept is None else x[:, kept])


@checked()
def vocabulary_outputs(
    steps: Steps,
    x: Float[Array, "batch length width"],
    head: Float[Array, "width vocabulary"],
    soft_cap: float | None = None,
) -> Outputs:
    """Return the outputs of a language model, after its tap ``head``.

    Args:
        steps: of the forward pass.
        x: features, normalised.
        head: the output projection.
        soft_cap: that logits stay within; None for none.
    """
    head = steps.tap("head", head.astype(x.dtype))

    def logits() -> Array:
        found = on_rows(lambda x: x @ head, x)
        if soft_cap is not None:
            found = soft_cap * jnp.tanh(found / soft_cap)
        return constrain(found, "batch", None, "vocabulary")

    return steps.outputs(logits)
