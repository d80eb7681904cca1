"""Swin transformers (Liu et al. 2021, arXiv:2103.14030)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
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

EPSILON = 1e-5
"""Of Swin's layer norms."""

SIZES = {
    "pico": (48, 2, 2, 2, 2, 2, 4, 8, 16),
    "nano": (64, 2, 2, 2, 2, 2, 4, 8, 16),
    "tiny": (96, 2, 2, 6, 2, 3, 6, 12, 24),
    "small": (96, 2, 2, 18, 2, 3, 6, 12, 24),
    "base": (128, 2, 2, 18, 2, 4, 8, 16, 32),
}
"""Width of the first stage, blocks and then attention heads of the four stages.

Tiny, small and base are the paper's; pico and nano are students of Hao et
al. 2023 (arXiv:2310.19444).
"""


class Sizes(NamedTuple):
    """What the numbers of a size are.

    Attributes:
        width: features of a token in the first stage; each has twice the last one's.
        depths: blocks of each stage.
        heads: of the attention in each stage.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]


@checked()
def sizes(size: str | Sequence[int]) -> Sizes:
    """Return the numbers of a size, as `swin` takes it.

    Raises:
        ValueError: an unknown name, numbers below 1 or not of whole stages, or widths
            that the heads do not divide.
    """
    numbers = named_size(size, SIZES, "Swin") if isinstance(size, str) else tuple(size)
    stages = len(numbers) // 2
    if stages < 1 or len(numbers) % 2 == 0 or min(numbers) < 1:
        raise ValueError(
            f"size must be one of {', '.join(SIZES)} or positive numbers: the first "
            "stage's width, and of each stage the blocks and then the heads, such as 9 "
            f"of four stages; got {numbers}"
        )
    found = Sizes(numbers[0], numbers[1 : 1 + stages], numbers[1 + stages :])
    if any(found.width * 2**i % count for i, count in enumerate(found.heads)):
        raise ValueError(
            f"size is {numbers}: the stages' widths {found.width}, {2 * found.width}, "
            f"… must be multiples of their heads {found.heads}"
        )
    return found


class PatchMerging(nnx.Module):
    """Join 2x2 neighbouring tokens, normalise, and project them linearly.

    Args:
        features_in: of a token.
        features: of a joined one.
    """

    def __init__(self, features_in: int, features: int, *, rngs: nnx.Rngs):
        self.norm = layer_norm(4 * features_in, EPSILON, rngs=rngs)
        self.reduction = linear(4 * features_in, features, use_bias=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens features"]
    ) -> Float[Array, "batch quarter out_features"]:
        """Return a quarter of the tokens.

        Raises:
            ValueError: the tokens are no square grid of even side.
        """
        side = _side(x.shape[1])
        if side % 2:
            raise ValueError(
                f"x has a grid of {side} x {side} tokens: to join 2 x 2 of them its "
                "side must be even"
            )
        # Rows vary first: (0, 0), (1, 0), (0, 1), (1, 1), as in published weights.
        x = rearrange(x, "b (i y j x) c -> b (i j) (x y c)", i=side // 2, y=2, x=2)
        return self.reduction(self.norm(x))


def _side(tokens: int) -> int:
    side = round(tokens**0.5)
    if side**2 != tokens:
        raise ValueError(f"x has {tokens} tokens, which form no square grid")
    return side


class WindowAttention(nnx.Module):
    """Self-attention within windows, with a bias for each relative position.

    Args:
        width: features of a token.
        heads: of the attention.
        side: of the grid of tokens.
        window: side of a window.
        shift: by which windows are moved down and right.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        side: int,
        window: int,
        shift: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.heads, self.side, self.window, self.shift = heads, side, window, shift
        self.qkv = linear(width, 3 * width, axes=("embed", "heads"), rngs=rngs)
        self.projection = linear(width, width, axes=("heads", "embed"), rngs=rngs)
        self.bias = nnx.Param(normal(rngs.params(), ((2 * window - 1) ** 2, heads)))

    def __call__(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens width"]:
        """Return what every token gathers from its window."""
        sizes = {"p": self.window, "q": self.window}
        grid = rearrange(self.qkv(x), "b (y x) c -> b y x c", y=self.side)
        grid = jnp.roll(grid, (-self.shift, -self.shift), (1, 2))
        parts = rearrange(
            grid,
            "b (i p) (j q) (n h d) -> n b (i j) (p q) h d",
            n=3,
            h=self.heads,
            **sizes,
        )
        bias = self.bias[...][relative_positions(self.window)].astype(x.dtype)
        bias = bias.transpose(2, 0, 1)[None]
        mask = window_mask(self.side, self.window, self.shift)[:, None]

        def attend(query: Array, key: Array, value: Array) -> Array:
            return jax.nn.dot_product_attention(
                query, key, value, bias=bias, mask=jnp.asarray(mask)
            )

        gathered = rearrange(
            jax.vmap(attend)(*parts),
            "b (i j) (p q) h d -> b (i p) (j q) (h d)",
            i=self.side // self.window,
            **sizes,
        )
        gathered = jnp.roll(gathered, (self.shift, self.shift), (1, 2))
        return self.projection(rearrange(gathered, "b y x c -> b (y x) c"))


@checked()
def relative_positions(window: int) -> np.ndarray:
    """Return the index (tokens, tokens) of each pair's relative position in a window.

    It is (Δrow + window − 1)·(2·window − 1) + Δcolumn + window − 1, the query's place
    less the key's.
    """
    rows, columns = np.divmod(np.arange(window**2), window)
    down = rows[:, None] - rows + window - 1
    return down * (2 * window - 1) + columns[:, None] - columns + window - 1


@checked()
def window_mask(side: int, window: int, shift: int) -> np.ndarray:
    """Return which pairs (windows, tokens, tokens) were neighbours before the shift.

    Shifting moves the first rows and columns behind the last; a window there holds
    tokens from both ends of the image, which must not see each other.
    """
    # Regions: before the last window, its part that stays, and what came round.
    edges = np.arange(side) >= side - window
    region = edges.astype(int) + (np.arange(side) >= side - shift)
    region = 3 * region[:, None] + region
    region = rearrange(region, "(i p) (j q) -> (i j) (p q)", p=window, q=window)
    return region[:, :, None] == region[:, None, :]


class SwinBlock(nnx.Module):
    """Windowed attention and an MLP, each normalised before and added after.

    Args:
        width: features of a token.
        heads: of the attention.
        side: of the grid of tokens.
        window: side of a window.
        shift: by which windows are moved.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        side: int,
        window: int,
        shift: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = layer_norm(width, EPSILON, rngs=rngs)
        self.attention = WindowAttention(width, heads, side, window, shift, rngs=rngs)
        self.norm2 = layer_norm(width, EPSILON, rngs=rngs)
        self.mlp = MLP(width, 4 * width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens width"]:
        """Return as many tokens."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Swin(nnx.Module):
    """Patches through stages of windowed attention, four mostly, to a linear head.

    Every stage but the first begins by joining 2x2 tokens, with twice the features.
    Taps: ``embed`` and ``final`` (after the last norm); ``stage1`` … ``stage4``, all
    (batch, tokens, features), row by row; ``pooled`` (batch, features).
    """

    def __init__(
        self,
        size: Sizes,
        classes: int,
        image_size: int,
        patch_size: int,
        window: int,
        channels_in: int,
        *,
        rngs: nnx.Rngs,
    ):
        width, depths, heads = size
        side = image_size // patch_size
        self.patches = PatchEmbed(image_size, patch_size, channels_in, width, rngs=rngs)
        self.norm0 = layer_norm(width, EPSILON, rngs=rngs)
        self.merging, self.stages = nnx.List(), nnx.List()
        for i, (depth, head_count) in enumerate(zip(depths, heads, strict=True)):
            if i:
                self.merging.append(PatchMerging(width, 2 * width, rngs=rngs))
                width, side = 2 * width, side // 2
            own = min(window, side)
            self.stages.append(
                nnx.List(
                    SwinBlock(
                        width,
                        head_count,
                        side,
                        own,
                        own // 2 if j % 2 and own < side else 0,
                        rngs=rngs,
                    )
                    for j in range(depth)
                )
            )
        self.norm = layer_norm(width, EPSILON, rngs=rngs)
        self.head = linear(width, classes, axes=("embed", "vocabulary"), rngs=rngs)
        stages = (f"stage{i}" for i in range(1, len(depths) + 1))
        self.taps = self.cuts = ("embed", *stages, "final", "pooled")

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps("embed", lambda image: self.norm0(self.patches(image)), image)
        for i in range(1, len(self.stages) + 1):
            x = steps(f"stage{i}", self._stage, i, x)
        x = steps("final", self.norm, x)
        return steps.outputs(self.head, steps("pooled", lambda x: x.mean(1), x))

    def _stage(self, number: int, x: Array) -> Array:
        if number > 1:
            x = self.merging[number - 2](x)
        for block in self.stages[number - 1]:
            x = block(x)
        return x


@checked()
@recorded
def swin(
    size: str | Sequence[int] = "tiny",
    classes: int = 1000,
    *,
    image_size: int = 224,
    patch_size: int = 4,
    window: int = 7,
    channels_in: int = 3,
) -> Network:
    """Return a Swin transformer.

    Args:
        size: ``"tiny"``, ``"small"``, ``"base"``, ``"pico"``, ``"nano"``, or numbers:
            the first stage's width, and the blocks and then the attention heads of all
            stages, nine for four.
        classes: logits.
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        window: tokens of a window's side; all of a grid that is not larger.
        channels_in: the image's channels.

    Raises:
        ValueError: an unknown size, widths that the heads do not divide, or a grid of
            patches that windows do not tile in every stage.
    """
    numbers, grid = sizes(size), image_size // patch_size
    halvings = len(numbers.depths) - 1
    sides = [grid // 2**i for i in range(halvings + 1)]
    tiled = window > 0 and not any(side % min(window, side or 1) for side in sides)
    if grid < 1 or grid % 2**halvings or not tiled:
        raise ValueError(
            f"image_size {image_size} with patch_size {patch_size} makes a grid of "
            f"{grid} x {grid} patches: it must be a multiple of {2**halvings}, and its "
            f"stages {sides} multiples of window {window} where they are larger"
        )
    return Network.from_nnx(
        lambda rngs: Swin(
            numbers, classes, image_size, patch_size, window, channels_in, rngs=rngs
        )
    )
