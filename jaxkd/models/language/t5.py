"""T5: an encoder of the input's text, and a decoder of the output's.

Raffel et al. 2019 (arXiv:1910.10683), and version 1.1, which has gated MLPs (Shazeer
2020, arXiv:2002.05202) and a head of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, own_check, positive
from jaxkd.models.language.cache import AXES, KVCache
from jaxkd.models.language.relative import distance_buckets
from jaxkd.models.language.sequence import token_ids, vocabulary_outputs
from jaxkd.models.language.t5_stack import Config, Seen, Stack, T5Cache, normal
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain, declare
from jaxkd.types import Outputs

READS = (
    *("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"),
    # Read to be refused: packed sequences would see one another.
    "segment_ids",
)


class T5(nnx.Module):
    """Embedding, encoder, decoder, head.

    Taps: of the decoder ``embed``, ``block0`` … and ``final`` (after the last norm),
    (batch, length, width); ``block{i}.attn`` and ``block{i}.cross``, what a block's
    attention to its own tokens and to the encoder's adds; ``head``, the output
    projection (width, vocabulary), which with ``final`` makes the logits; ``cache``, a
    `T5Cache` of the tokens read, to go on from. Of the encoder ``encoder.embed``,
    ``encoder.block{i}``, ``encoder.block{i}.attn`` and ``encoder.final``.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(
            config.vocabulary,
            config.width,
            embedding_init=normal(1.0),
            embedding_metadata=declare("vocabulary", "embed"),
            rngs=rngs,
        )
        self.encoder = Stack(config, decoder=False, rngs=rngs)
        self.decoder = Stack(config, decoder=True, rngs=rngs)
        if not config.tied:
            sizes, axes = (config.width, config.vocabulary), ("embed", "vocabulary")
            self.head = config.linear(*sizes, axes, 1.0, rngs=rngs)
        self.taps = (*self.encoder.taps, *self.decoder.taps, "head", "cache")

    def __call__(
        self, inputs: Mapping[str, Any], *, steps: Steps | None = None
    ) -> Outputs:
        """Return logits (batch, length, vocabulary), and the features asked for.

        Args:
            inputs: ``input_ids`` (batch, source) and ``attention_mask`` (batch,
                source), 0 for padding, of the input's text; ``decoder_input_ids``
                (batch, length) and ``decoder_attention_mask`` of the output's, which
                starts with the token that starts outputs. With ``cache``, what was read
                before, the input's text is not needed: the encoder does not run again.
                ``logits_to_keep``, places of the tokens whose ``final`` and logits
                alone are returned.
            steps: of the forward pass.

        Raises:
            ValueError: ids that are missing or have another shape, packed sequences, a
                cache without room, or taps of the encoder with a cache.
        """
        steps, cache = steps or Steps(), inputs.get("cache")
        if "segment_ids" in inputs:
            raise ValueError(
                "segment_ids: T5 reads no packed sequences, give each a row of its own"
            )
        encoder = [tap for tap in steps.taps if tap.startswith("encoder.")]
        if encoder and cache is not None:
            raise ValueError(
                f"tap {encoder[0]!r} with a cache: the encoder ran when the cache was "
                "made, ask for it there"
            )
        encoded = self.encode(inputs, steps) if cache is None else None
        x = self.decode(inputs, steps, encoded)
        if (kept := inputs.get("logits_to_keep")) is not None:
            x = x[:, kept]
        x = steps.tap("final", x)
        head = (
            self.embed.embedding[...].T if self.config.tied else self.head.kernel[...]
        )
        if self.config.scaled:
            head = head * self.config.width**-0.5
        return vocabulary_outputs(steps, x, head)

    def encode(self, inputs: Mapping[str, Any], steps: Steps) -> Array:
        """Return the encoder's features, (batch, source, width)."""
        ids = token_ids(inputs)
        places = jnp.arange(ids.shape[1])
        bias = self.encoder.relative(places, places)
        x = self.embed.embedding[...][ids]
        encoded, _ = self.encoder(x, Seen(bias, _row(inputs)), steps)
        return steps.tap("encoder.final", encoded)

    def decode(
        self, inputs: Mapping[str, Any], steps: Steps, encoded: Array | None
    ) -> Array:
        """Return the decoder's features, (batch, length, width).

        Args:
            inputs: of the network.
            steps: of the forward pass.
            encoded: from `encode`; None where a cache is given.
        """
        ids = token_ids(inputs, "decoder_input_ids")
        x = self.embed.embedding[...][ids]
        length, mask = ids.shape[1], inputs.get("decoder_attention_mask")
        real = jnp.ones(ids.shape, bool) if mask is None else jnp.asarray(mask) > 0
        cache = inputs.get("cache")
        if cache is None and encoded is not None and "cache" in steps.taps:
            cache = self._empty(inputs, encoded, length)
        first, slots, source = 0, length, _row(inputs)
        if cache is None:
            visible = real[:, None] & jnp.tri(length, dtype=bool)
        else:
            own = cache.own.admit(real)
            first, slots, visible = own.length, own.real.shape[1], own.visible(length)
            source = cache.real[:, None]
            cache = dataclasses.replace(cache, own=own)
        bias = self.decoder.relative(first + jnp.arange(length), jnp.arange(slots))
        x, cache = self.decoder(x, Seen(bias, visible, source, encoded), steps, cache)
        if cache is not None:
            own = cache.own.passed(length)
            steps.tap("cache", dataclasses.replace(cache, own=own))
        return x

    def _empty(self, inputs: Mapping[str, Any], encoded: Array, slots: int) -> T5Cache:
        """Return the cache of an input that no token of the output has been read of."""
        config, (batch, source, _) = self.config, encoded.shape
        layers, heads = config.decoder_layers, (config.heads, config.head_dim)
        own = KVCache.empty(layers, batch, slots, *heads, encoded.dtype)
        key = jnp.zeros((layers, batch, source, *heads), encoded.dtype)
        key = constrain(key, *AXES)
        real = _row(inputs)
        known = jnp.ones((batch, source), bool) if real is None else real[:, 0]
        return T5Cache(own, key, key, known)


def _row(inputs: Mapping[str, Any]) -> Bool[Array, "batch 1 source"] | None:
    """Return which of the encoder's tokens are seen, by all that see them."""
    mask = inputs.get("attention_mask")
    return None if mask is None else (jnp.asarray(mask) > 0)[:, None]


@checked(epsilon=positive, feed_forward=own_check)
@recorded
def t5(
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    hidden: int,
    *,
    decoder_layers: int | None = None,
    head_dim: int = 64,
    feed_forward: Literal["relu", "gated-gelu"] = "relu",
    buckets: int = 32,
    max_distance: int = 128,
    epsilon: float = 1e-6,
    tied: bool = True,
    scaled: bool = True,
    scan: bool = True,
    remat: bool = False,
) -> Network:
    """Return an encoder-decoder language model; see `Config` for the arguments.

    Args:
        vocabulary: tokens that there are.
        width: features of the residual streams.
        layers: blocks of the encoder.
        heads: of the attention.
        hidden: width of the MLPs.
        decoder_layers: blocks of the decoder; None for as many as ``layers``.
        head_dim: features of a head.
        feed_forward: ``"relu"`` as in T5, or ``"gated-gelu"`` as in T5 1.1.
        buckets: of relative positions.
        max_distance: from which on all positions share a bucket.
        epsilon: of the norms.
        tied: whether the head is the embedding, as in T5, not in T5 1.1.
        scaled: whether the head is divided by √width; likewise.
        scan: whether the blocks are one compiled loop.
        remat: whether blocks are computed anew in the backward pass.

    Raises:
        ValueError: another ``feed_forward``, or buckets that do not fit the distance.
    """
    if feed_forward not in ("relu", "gated-gelu"):
        raise ValueError(
            f"feed_forward must be 'relu' or 'gated-gelu', got {feed_forward!r}"
        )
    # Refuses what does not fit; the encoder's are fewer, for it sees both ways.
    distance_buckets(buckets // 2, max_distance)
    config = Config(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        decoder_layers=layers if decoder_layers is None else decoder_layers,
        heads=heads,
        head_dim=head_dim,
        hidden=hidden,
        feed_forward=feed_forward,
        buckets=buckets,
        max_distance=max_distance,
        epsilon=epsilon,
        tied=tied,
        scaled=scaled,
        scan=scan,
        remat=remat,
    )
    return Network.from_nnx(lambda rngs: T5(config, rngs=rngs), reads=READS)
