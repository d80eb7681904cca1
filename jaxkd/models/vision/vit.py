"""Vision transformers: ViT and DeiT, with DeiT's distillation token.

Dosovitskiy et al. 2020 (arXiv:2010.11929) and Touvron et al. 2020 (arXiv:2012.12877).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps, Tap, unchanged
from jaxkd.arguments import checked, fraction, positive
from jaxkd.models.parts.blocks import Image
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.tokens import (
    MLP,
    PatchEmbed,
    layer_norm,
    linear,
    named_size,
    normal,
)
from jaxkd.network import Network
from jaxkd.types import Outputs

SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, blocks and attention heads by name (DeiT, Table 1; the base is ViT's)."""


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = linear(width, 3 * width, axes=("embed", "heads"), rngs=rngs)
        self.projection = linear(width, width, axes=("heads", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens width"]:
        """Return what every token gathers from all."""
        query, key, value = (
            rearrange(part, "b t (h d) -> b t h d", h=self.heads)
            for part in jnp.split(self.qkv(x), 3, axis=-1)
        )
        gathered = jax.nn.dot_product_attention(query, key, value)
        return self.projection(rearrange(gathered, "b t h d -> b t (h d)"))


class Block(nnx.Module):
    """Attention and an MLP, each normalised before and added after.

    Args:
        width: features of a token.
        heads: of the attention.
        drop_path: rate at which a training example skips a branch (stochastic depth,
            Huang et al. 2016, arXiv:1603.09382).
        hidden: width of the MLP; None for four times that of a token.
        epsilon: of the norms.
        mlp: what takes the MLP's place, such as a mixture of experts.
        layer_scale: what the factors of each branch's features start at, which are
            learnt (Touvron et al. 2021, arXiv:2103.17239); None for none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        drop_path: float,
        *,
        hidden: int | None = None,
        epsilon: float = 1e-6,
        mlp: nnx.Module | None = None,
        layer_scale: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.norm1 = layer_norm(width, epsilon, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon, rngs=rngs)
        own = 4 * width if hidden is None else hidden
        self.mlp: Any = MLP(width, own, rngs=rngs) if mlp is None else mlp
        self.scale1, self.scale2 = (
            None
            if layer_scale is None
            else nnx.Param(jnp.full(width, layer_scale, jnp.float32))
            for _ in range(2)
        )
        self.drop = (
            nnx.Dropout(drop_path, broadcast_dims=(1, 2), rngs=rngs)
            if drop_path
            else None
        )

    def __call__(
        self, x: Float[Array, "batch tokens width"], tap: Tap = unchanged
    ) -> Float[Array, "batch tokens width"]:
        """Return the block's output; ``tap`` gets what the attention adds."""
        attended = tap(_scaled(self.scale1, self.attention(self.norm1(x))))
        x = x + (attended if self.drop is None else self.drop(attended))
        y = _scaled(self.scale2, self.mlp(self.norm2(x)))
        return x + (y if self.drop is None else self.drop(y))


def _scaled(scale: nnx.Param | None, x: Array) -> Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


def _usual(block: int) -> None:
    """Say that a block has an MLP."""


class ViT(nnx.Module):
    """Patches and a class token through transformer blocks to a linear head.

    With a distillation token there is a second head, which is to learn from the
    teacher: in training the logits are the class head's, in evaluation the mean of
    both. Taps: ``embed``, ``block0`` … and ``final`` (after the last norm), (batch,
    tokens, width) with the class (and distillation) token first; ``block{i}.attn``;
    ``pooled``, the class token (batch, width); ``distillation_logits`` (batch,
    classes) of the second head.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        classes: int,
        image_size: int,
        patch_size: int,
        distilled: bool,
        drop_path: float,
        channels_in: int,
        *,
        hidden: int | None = None,
        epsilon: float = 1e-6,
        mlp: Callable[[int], nnx.Module | None] = _usual,
        rngs: nnx.Rngs,
    ):
        width, depth, heads = size
        self.deterministic = False  # set by Module.train and eval
        self.patches = PatchEmbed(image_size, patch_size, channels_in, width, rngs=rngs)
        prefix = 2 if distilled else 1
        shapes = (1, prefix, width), (1, prefix + self.patches.tokens, width)
        self.prefix, self.positions = (
            nnx.Param(normal(rngs.params(), shape)) for shape in shapes
        )
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        build = partial(Block, width, heads, hidden=hidden, epsilon=epsilon, rngs=rngs)
        self.blocks = nnx.List(build(rate, mlp=mlp(i)) for i, rate in enumerate(rates))
        self.norm = layer_norm(width, epsilon, rngs=rngs)
        head = partial(linear, width, classes, axes=("embed", "vocabulary"), rngs=rngs)
        self.head, self.distillation_head = head(), head() if distilled else None
        blocks = [f"block{i}" for i in range(depth)]
        self.taps = (
            *("embed", *blocks, *(f"{block}.attn" for block in blocks)),
            *("final", "pooled"),
            *(("distillation_logits",) if distilled else ()),
        )
        # Two heads read two tokens, so that one token's features are no cut.
        self.cuts = ("embed", *blocks, "final", *(() if distilled else ("pooled",)))

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps("embed", self._embed, image)
        for i, block in enumerate(self.blocks):
            x = steps(f"block{i}", block, x, partial(steps.tap, f"block{i}.attn"))
        x = steps("final", self.norm, x)
        if self.distillation_head is None:
            return steps.outputs(self.head, steps("pooled", lambda x: x[:, 0], x))
        return steps.outputs(self._two_heads, self.distillation_head, x, steps)

    def _embed(self, image: Array) -> Array:
        x = self.patches(image)
        prefix = self.prefix[...].astype(x.dtype)
        x = jnp.concatenate([jnp.tile(prefix, (len(x), 1, 1)), x], axis=1)
        return x + self.positions[...].astype(x.dtype)

    def _two_heads(self, second: nnx.Linear, x: Array, steps: Steps) -> Array:
        logits = self.head(steps.tap("pooled", x[:, 0]))
        learnt = steps.tap("distillation_logits", second(x[:, 1]))
        return (logits + learnt) / 2 if self.deterministic else logits


@checked()
def check_heads(size: tuple[int, ...]) -> None:
    """Refuse a width that the heads do not divide.

    Raises:
        ValueError: it names the size.
    """
    width, _, heads = size
    if width % heads:
        raise ValueError(
            f"size is (width, blocks, heads), the width a multiple of the heads, got "
            f"{size}"
        )


@checked(epsilon=positive, drop_path=fraction)
@recorded
def vit(
    size: str | Sequence[int] = "tiny",
    classes: int = 1000,
    *,
    image_size: int = 224,
    patch_size: int = 16,
    distilled: bool = False,
    drop_path: float = 0.0,
    channels_in: int = 3,
    hidden: int | None = None,
    epsilon: float = 1e-6,
) -> Network:
    """Return a vision transformer.

    Args:
        size: ``"tiny"`` (DeiT-Ti), ``"small"`` (DeiT-S), ``"base"`` (ViT-B, DeiT-B), or
            (width, blocks, heads).
        classes: logits.
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        distilled: whether there is a distillation token with its own head.
        drop_path: rate of stochastic depth at the last block, rising linearly from 0.
        channels_in: the image's channels.
        hidden: width of the MLPs; None for four times that of the tokens.
        epsilon: of the norms.

    Raises:
        ValueError: an unknown size, a width that the heads do not divide, patches that
            do not tile the image, or a rate outside [0, 1).
    """
    width, depth, heads = named_size(size, SIZES, "ViT")
    check_heads((width, depth, heads))
    return Network.from_nnx(
        lambda rngs: ViT(
            (width, depth, heads),
            classes,
            image_size,
            patch_size,
            distilled,
            drop_path,
            channels_in,
            hidden=hidden,
            epsilon=epsilon,
            rngs=rngs,
        )
    )
