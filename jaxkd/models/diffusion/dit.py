"""Diffusion transformers (DiT) with adaLN-Zero.

Peebles and Xie 2022 (arXiv:2212.09748): every block's two layer norms have no
parameters of their own; time and class scale and shift them, and gate what the block
adds. The gates start at 0, so a new network returns 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.losses.masked_images import unpatchify
from jaxkd.models.diffusion.conditioning import INPUTS, Conditioning, unpack
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.tokens import MLP, PatchEmbed, grid_positions, named_size
from jaxkd.models.vision.vit import Attention
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain_batch
from jaxkd.types import Outputs

SIZES = {
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xlarge": (1152, 28, 16),
}
"""Width, blocks and attention heads by name (Table 1)."""

FREQUENCIES = 256
"""Sines and cosines of the time."""


def _plain_norm(width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        width,
        epsilon=1e-6,
        use_bias=False,
        use_scale=False,
        use_fast_variance=False,
        rngs=rngs,
    )


def _modulation(width: int, parts: int, *, rngs: nnx.Rngs) -> Linear:
    return Linear(width, parts * width, kernel_init=nnx.initializers.zeros, rngs=rngs)


def _modulated(x: Array, shift: Array, scale: Array) -> Array:
    return x * (1 + scale) + shift


class Block(nnx.Module):
    """Attention and an MLP, scaled, shifted and gated by time and class.

    Args:
        width: features of a token, and of the embedding.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = _plain_norm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm2 = _plain_norm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, rngs=rngs)
        self.modulation = _modulation(width, 6, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        embedding: Float[Array, "batch width"],
    ) -> Float[Array, "batch tokens width"]:
        """Return the block's output."""
        modulation = self.modulation(jax.nn.silu(embedding))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, -1)
        x = x + gate1 * self.attention(_modulated(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(_modulated(self.norm2(x), shift2, scale2))


class DiT(nnx.Module):
    """Patches through transformer blocks, and back to an image's shape.

    Taps: ``embed``, ``block0`` … and ``final`` (after the last norm), (batch, tokens,
    width).
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        image_size: int,
        patch_size: int,
        channels_in: int,
        classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        width, depth, heads = size
        self.shape, self.patch_size = (image_size, image_size, channels_in), patch_size
        self.width, self.side = width, image_size // patch_size
        self.patches = PatchEmbed(image_size, patch_size, channels_in, width, rngs=rngs)
        self.conditioning = Conditioning(FREQUENCIES, width, classes, rngs=rngs)
        self.blocks = nnx.List(Block(width, heads, rngs=rngs) for _ in range(depth))
        self.norm = _plain_norm(width, rngs=rngs)
        self.modulation = _modulation(width, 2, rngs=rngs)
        self.head = Linear(
            width,
            patch_size**2 * channels_in,
            axes=("embed", "vocabulary"),
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )
        self.taps = ("embed", *(f"block{i}" for i in range(depth)), "final")

    def __call__(
        self, inputs: dict[str, Array], *, steps: Steps | None = None
    ) -> Outputs:
        """Return one value for each of the image's as logits, and the features."""
        steps = steps or Steps()
        image, time, condition = unpack(inputs, self.shape)
        embedding = self.conditioning(time, condition, image.dtype)
        x = steps("embed", self._embed, image)
        for i, block in enumerate(self.blocks):
            x = steps(f"block{i}", block, constrain_batch(x), embedding)
        x = steps("final", self._final, x, embedding)
        return steps.outputs(self._pixels, x)

    def _embed(self, image: Array) -> Array:
        x = self.patches(image)
        return x + grid_positions(self.side, self.width).astype(x.dtype)

    def _final(self, x: Array, embedding: Array) -> Array:
        shift, scale = jnp.split(self.modulation(jax.nn.silu(embedding)), 2, -1)
        return _modulated(self.norm(x), shift[:, None], scale[:, None])

    def _pixels(self, x: Array) -> Array:
        return unpatchify(self.head(x), self.patch_size)


@checked()
@recorded
def dit(
    size: str | Sequence[int] = "small",
    *,
    image_size: int = 32,
    patch_size: int = 2,
    channels_in: int = 4,
    classes: int = 0,
) -> Network:
    """Return a diffusion transformer; the defaults are DiT-S/2's on 256-pixel latents.

    Its inputs are a dict of ``image``, ``time`` and, with classes, ``condition``; see
    `conditioning`. Its logits are (batch, height, width, channels_in).
    GELU is exact, where the authors' is its tanh approximation.

    Args:
        size: ``"small"``, ``"base"``, ``"large"``, ``"xlarge"``, or (width, blocks,
            heads).
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        channels_in: the image's channels.
        classes: that images belong to; 0 for a model without.

    Raises:
        ValueError: an unknown size, a width that 4 or the heads do not divide, or
            patches that do not tile the image.
    """
    width, depth, heads = named_size(size, SIZES, "DiT")
    if width % heads or width % 4:
        raise ValueError(
            f"size is (width, blocks, heads), the width a multiple of the heads and of "
            f"4, got {(width, depth, heads)}"
        )
    return Network.from_nnx(
        lambda rngs: DiT(
            (width, depth, heads),
            image_size,
            patch_size,
            channels_in,
            classes,
            rngs=rngs,
        ),
        reads=INPUTS,
    )
