"""The blocks of decoders such as Llama: attention and an MLP, with their norms."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.models.language.cache import KVCache
from jaxkd.models.language.latent_attention import LatentAttention
from jaxkd.models.language.llama_attention import Attention
from jaxkd.models.language.llama_config import ACTIVATIONS, Config, times
from jaxkd.models.language.sequence import Sequence
from jaxkd.models.parts.moe import MoE
from jaxkd.models.parts.stack import run_stack
from jaxkd.sharding.axes import constrain

BlockTap = Callable[[str, Array], Array]
"""``(kind, activation) -> activation``, as edited: of the tap ``block{i}{kind}``."""


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)) (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Config, hidden: int | None = None, *, rngs: nnx.Rngs):
        width, hidden = config.width, hidden or config.hidden
        into, back = ("embed", "hidden"), ("hidden", "embed")
        self.activation = config.activation
        self.gate = config.linear(width, hidden, into, rngs=rngs)
        self.up = config.linear(width, hidden, into, rngs=rngs)
        self.down = config.linear(hidden, width, back, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return as many features."""
        hidden = ACTIVATIONS[self.activation](self.gate(x)) * self.up(x)
        return self.down(constrain(hidden, "batch", None, "hidden"))


class Block(nnx.Module):
    """Attention and an MLP, each normalised before, after or both, and added."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config

        def norm(*where: str) -> Any:
            there = config.norms in where
            return config.norm(config.width, rngs=rngs) if there else None

        self.attention_norm = norm("before", "both")
        attention = Attention if config.latent is None else LatentAttention
        self.attention = attention(config, rngs=rngs)
        self.attention_post_norm = norm("after", "both")
        self.mlp_norm = norm("before", "both")
        self.mlp = _feed_forward(config, rngs)
        self.mlp_post_norm = norm("after", "both")

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Sequence,
        cache: KVCache | None = None,
        layer: int | Int[Array, ""] = 0,
        tap: BlockTap = lambda kind, x: x,
    ) -> tuple[Float[Array, "batch length width"], KVCache | None]:
        """Return the output and the cache.

        The tap ".attn" gets what attention adds, ".router" a mixture's logits.
        """
        normal = _normalised(self.attention_norm, x)
        attended, cache = self.attention(normal, tokens, cache, layer)
        x = x + tap(".attn", self._added(self.attention_post_norm, attended))
        normal = _normalised(self.mlp_norm, x)
        mixed = isinstance(self.mlp, MoE)
        router = {"tap": partial(tap, ".router")} if mixed else {}
        found = self.mlp(normal, **router)
        return x + self._added(self.mlp_post_norm, found), cache

    def _added(self, norm: nnx.Module | None, x: Array) -> Array:
        """Return what is added to the residual stream."""
        return times(self.config.multipliers.residual, _normalised(norm, x))


def _feed_forward(config: Config, rngs: nnx.Rngs) -> nnx.Module:
    """Return an MLP, or a mixture of them."""
    mixture = config.mixture
    if mixture is None:
        return GatedMLP(config, rngs=rngs)
    shared = GatedMLP(config, mixture.shared, rngs=rngs) if mixture.shared else None
    return MoE(config.width, mixture, shared=shared, rngs=rngs)


def _normalised(norm: Any, x: Array) -> Array:
    return x if norm is None else norm(x)


@checked()
def run_blocks(
    config: Config,
    blocks: Block,
    x: Float[Array, "batch length width"],
    tokens: Sequence,
    cache: KVCache | None,
    steps: Steps,
    first: int = 0,
) -> tuple[Array, KVCache | None]:
    """Return the features after stacked blocks, and the cache.

    Args:
        config: of the model.
        blocks: stacked.
        x: features before them.
        tokens: what is known of them.
        cache: of which these layers are the blocks', or None.
        steps: of the forward pass.
        first: number of the first of the blocks among all.
    """

    def run(block: Block, x: Array, cache: Any, layer: Array, tap: BlockTap):
        x = constrain(x, "batch", "length", None)
        return block(x, tokens, cache, layer, tap)

    # The cache is carried, not scanned, so that its slots are written in place.
    how = {"scan": config.scan, "remat": config.remat, "first": first}
    return run_stack(blocks, run, x, cache, steps, **how)
