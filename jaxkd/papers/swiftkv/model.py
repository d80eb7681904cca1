"""Llamas whose later layers need no prompt: SwiftKV (Qiao et al. 2024).

arXiv:2410.03960. The keys and values of every later layer are made from the features
that enter the first of them (SingleInputKV), so that tokens whose logits nobody asks
for stop there: most of a prompt's way is half as long. Groups of later layers may share
keys and values (AcrossKV), which makes the cache smaller.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxkd.adapters import Steps, Tap
from jaxkd.arguments import checked
from jaxkd.models.language.cache import KVCache
from jaxkd.models.language.llama_attention import (
    attend_causally,
    attend_to_slots,
    by_heads,
)
from jaxkd.models.language.llama_blocks import Block, GatedMLP, run_blocks
from jaxkd.models.language.llama_config import Config, normal
from jaxkd.models.language.sequence import (
    READS,
    open_cache,
    sequence,
    token_ids,
    vocabulary_outputs,
)
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.stack import (
    block_taps,
    keep_scanned,
    stacked,
    tap_scanned,
)
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain, declare
from jaxkd.types import Outputs


class SharedKeys(nnx.Module):
    """The keys and values that a group of later layers attends to."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        features, bias = config.kv_heads * config.head_dim, config.qkv_bias
        sizes, axes = (config.width, features), ("embed", "heads")
        self.key = config.linear(*sizes, axes, bias=bias, rngs=rngs)
        self.value = config.linear(*sizes, axes, bias=bias, rngs=rngs)
        norms = config.qk_norm
        self.key_norm = config.norm(config.head_dim, rngs=rngs) if norms else None

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        positions: Int[Array, "batch length"],
    ) -> tuple[Array, Array]:
        """Return keys and values, (batch, length, kv_heads, head_dim)."""
        key = by_heads(self.config, self.key(x), positions, self.key_norm)
        return key, by_heads(self.config, self.value(x))


class LateAttention(nnx.Module):
    """Attention to keys and values that are made elsewhere."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        features, bias = config.heads * config.head_dim, config.qkv_bias
        width = config.width
        into, back = ("embed", "heads"), ("heads", "embed")
        self.query = config.linear(width, features, into, bias=bias, rngs=rngs)
        self.out = config.linear(features, width, back, rngs=rngs)
        norms = config.qk_norm
        self.query_norm = config.norm(config.head_dim, rngs=rngs) if norms else None

    def __call__(
        self,
        x: Float[Array, "batch kept width"],
        positions: Int[Array, "batch kept"],
        key: Float[Array, "batch slots kv_heads dim"],
        value: Float[Array, "batch slots kv_heads dim"],
        segments: Int[Array, "batch kept"] | None,
        visible: Bool[Array, "batch kept slots"] | None,
    ) -> Float[Array, "batch kept width"]:
        """Return what every kept token gathers.

        Args:
            x: features, normalised.
            positions: of the tokens.
            key: of the same tokens, or of a cache.
            value: likewise.
            segments: of tokens that see their own alone, or None.
            visible: which slots of a cache a token sees; None without a cache.
        """
        query = by_heads(self.config, self.query(x), positions, self.query_norm)
        if visible is None:
            found = attend_causally(self.config, query, key, value, segments)
        else:
            found = attend_to_slots(self.config, query, key, value, visible)
        return self.out(rearrange(found, "b l h d -> b l (h d)"))


class LateBlock(nnx.Module):
    """A later layer: the teacher's, but for keys and values."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention_norm = config.norm(config.width, rngs=rngs)
        self.attention = LateAttention(config, rngs=rngs)
        self.mlp_norm = config.norm(config.width, rngs=rngs)
        self.mlp = GatedMLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch kept width"], tap: Tap, *attended_to: Any
    ) -> Float[Array, "batch kept width"]:
        """Return the output; ``tap`` gets what the attention adds."""
        attended = tap(self.attention(self.attention_norm(x), *attended_to))
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))


class SwiftLlama(nnx.Module):
    """Embedding, early blocks, shared keys and values, late blocks, norm, head.

    Taps are those of `Llama`. With the input ``logits_to_keep`` the late
    blocks' features are of those tokens alone, since no other passes through them.
    """

    def __init__(self, config: Config, kv_layers: int, group: int, *, rngs: nnx.Rngs):
        self.config, self.kv_layers, self.group = config, kv_layers, group
        late = config.layers - kv_layers
        self.embed = nnx.Embed(
            config.vocabulary,
            config.width,
            embedding_init=normal,
            embedding_metadata=declare("vocabulary", "embed"),
            rngs=rngs,
        )

        self.early = stacked(
            lambda rngs: Block(config, rngs=rngs), kv_layers, rngs=rngs
        )
        self.shared_norm = config.norm(config.width, rngs=rngs)
        self.shared = stacked(
            lambda rngs: SharedKeys(config, rngs=rngs), late // group, rngs=rngs
        )
        self.late = stacked(lambda rngs: LateBlock(config, rngs=rngs), late, rngs=rngs)
        self.norm = config.norm(config.width, rngs=rngs)
        if not config.tied:
            axes = "embed", "vocabulary"
            self.head = config.linear(config.width, config.vocabulary, axes, rngs=rngs)
        blocks = block_taps(config.layers, "", ".attn")
        self.taps = ("embed", *blocks, "final", "head", "cache")

    def __call__(
        self, inputs: Mapping[str, Any], *, steps: Steps | None = None
    ) -> Outputs:
        """Return logits (batch, length, vocabulary), and the features asked for.

        Args:
            inputs: as `Llama` reads them. Tokens that are not among
                ``logits_to_keep`` (none of a prompt's chunk but its last has any) leave
                only their keys and values to the late blocks.
            steps: of the forward pass.

        Raises:
            ValueError: as `jaxkd.models.language.llama.Llama`.
        """
        steps, config = steps or Steps(), self.config
        x = steps.tap("embed", self.embed.embedding[...][token_ids(inputs)])
        kept, length = inputs.get("logits_to_keep"), x.shape[1]
        cached = self.kv_layers + (config.layers - self.kv_layers) // self.group
        wanted = steps.taps if kept is None else (*steps.taps, "cache")
        sizes = cached, config.kv_heads, config.head_dim
        cache = open_cache(inputs, x, wanted, *sizes)
        tokens = sequence(inputs, x.shape, cache, config.windows)
        x, cache = run_blocks(config, self.early, x, tokens, cache, steps)

        visible, positions = tokens.visible, tokens.positions
        if kept is not None and cache is not None:
            positions = positions[:, kept]
            visible = cache.visible(length, config.windows[0], kept)
        at = positions, tokens.segments, visible
        x, cache = self._late(x, kept, tokens.positions, at, cache, steps)
        if cache is not None:
            steps.tap("cache", cache.passed(length))
        x = steps.tap("final", self.norm(x))
        head = self.embed.embedding[...].T if config.tied else self.head.kernel[...]
        return vocabulary_outputs(steps, x, head)

    def _late(
        self,
        x: Float[Array, "batch length width"],
        kept: Int[Array, "kept"] | None,
        positions: Int[Array, "batch length"],
        at: tuple[Array, Array | None, Array | None],
        cache: KVCache | None,
        steps: Steps,
    ) -> tuple[Array, KVCache | None]:
        """Return the features of kept tokens after the late blocks, and the cache.

        Args:
            x: features of all tokens.
            kept: places of those that go on; None for all.
            positions: of all tokens.
            at: positions of the kept tokens, segments of all, and the slots that the
                kept tokens see.
            cache: whose last layers are the groups', or None.
            steps: of the forward pass.
        """
        config, group = self.config, self.group
        names = block_taps(config.layers, "")
        source = self.shared_norm(x)
        x = x if kept is None else x[:, kept]
        here, segments, visible = at
        shared_graph, shared = nnx.split(self.shared)
        late_graph, late = nnx.split(self.late)
        groups = jax.tree.leaves(shared)[0].shape[0]
        late = jax.tree.map(lambda w: w.reshape(groups, group, *w.shape[1:]), late)

        def run_group(carry: Any, scanned: Any) -> tuple[Any, dict[str, Array]]:
            (x, cache), (shared, blocks, layer) = carry, scanned
            key, value = nnx.merge(shared_graph, shared)(source, positions)
            if cache is not None:
                cache = cache.put(layer, key, value)
                if visible is not None:
                    key, value = cache.layer(layer)

            first = self.kv_layers + group * (layer - self.kv_layers)

            def run_block(x: Array, scanned: Any) -> tuple[Array, dict[str, Array]]:
                (block, i), found = scanned, {}

                def tap(kind: str, value: Array) -> Array:
                    return tap_scanned(steps, names, kind, first + i, value, found)

                x = constrain(x, "batch", "length", None)
                x = nnx.merge(late_graph, block)(
                    x, partial(tap, ".attn"), here, key, value, segments, visible
                )
                return tap("", x), found

            body = jax.checkpoint(run_block) if config.remat else run_block
            unroll = 1 if config.scan else group
            x, found = jax.lax.scan(body, x, (blocks, jnp.arange(group)), unroll=unroll)
            return (x, cache), found

        layers = self.kv_layers + jnp.arange(groups)
        (x, cache), found = jax.lax.scan(
            run_group,
            (x, cache),
            (shared, late, layers),
            unroll=1 if config.scan else groups,
        )
        late_blocks = range(self.kv_layers, config.layers)
        for kind, values in found.items():
            # Of a prompt's chunk there may be no tokens, and then no size to infer.
            flat = values.reshape(len(late_blocks), *values.shape[2:])
            keep_scanned(steps, names, kind, late_blocks, flat)
        return x, cache


@checked()
@recorded
def swiftkv_llama(llama: Mapping[str, Any], kv_layers: int, group: int = 1) -> Network:
    """Return a decoder whose later layers make no keys and values of their own.

    `jaxkd.papers.swiftkv.conversion` makes one from a trained Llama.

    Args:
        llama: arguments of `jaxkd.models.llama`, all of them.
        kv_layers: layers that are as ever; those after it share.
        group: later layers to one pair of keys and values.

    Raises:
        ValueError: ``kv_layers`` that leaves no later layer, later layers that are no
            multiple of ``group``, or another decoder than Llama, Mistral and Qwen.
    """
    config = Config.of(**llama)
    beyond = [
        option.name
        for option in fields(Config)
        if option.default not in (MISSING, getattr(config, option.name))
    ]
    if len({*config.attention}) > 1 or beyond:
        raise ValueError(
            f"llama has layers with attention of different kinds, or {beyond}: SwiftKV "
            "rewires Llama, Mistral and Qwen with layers that are alike"
        )
    late = config.layers - kv_layers
    if not 0 < kv_layers < config.layers:
        raise ValueError(
            f"kv_layers must be from 1 to {config.layers - 1}, got {kv_layers}: of "
            f"{config.layers} layers at least one is to come after them"
        )
    if group < 1 or late % group:
        raise ValueError(
            f"group must divide the {late} layers after the first {kv_layers}, got "
            f"{group}"
        )
    return Network.from_nnx(
        lambda rngs: SwiftLlama(config, kv_layers, group, rngs=rngs), reads=READS
    )
