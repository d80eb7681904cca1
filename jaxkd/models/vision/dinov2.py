"""DINOv2: a vision transformer for images of any size (arXiv:2304.07193).

Oquab et al. 2023. It is taught without labels; what it knows of an image is in its
tokens, of which a classifier reads the first and the mean of the rest.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, count, positive
from jaxkd.models.parts.blocks import Image
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.tokens import PatchEmbed, layer_norm, linear, named_size, normal
from jaxkd.models.vision.vit import Block, check_heads
from jaxkd.network import Network
from jaxkd.types import Outputs

SIZES = {
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "giant": (1536, 40, 24),
}
"""Width, blocks and attention heads by name; the giant has SwiGLU."""


class SwiGLU(nnx.Module):
    """SiLU of one half of a projection times the other half, projected back.

    Shazeer 2020 (arXiv:2002.05202), with biases.
    """

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = linear(width, 2 * hidden, axes=("embed", "hidden"), rngs=rngs)
        self.fc2 = linear(hidden, width, axes=("hidden", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens width"]:
        """Return as many features."""
        gate, value = jnp.split(self.fc1(x), 2, axis=-1)
        return self.fc2(jax.nn.silu(gate) * value)


@checked(old=count, new=count)
def cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the weights of ``old`` places in a row for ``new`` ones between them.

    Keys' cubic convolution (1981) with a = −0.75, places beyond an end being the last
    one, as PyTorch's bicubic interpolation has it; `jax.image.resize` has a = −0.5.
    """
    a, place = -0.75, (np.arange(new) + 0.5) * old / new - 0.5
    first, weights = np.floor(place).astype(int), np.zeros((new, old))
    for step in range(-1, 3):
        d = np.abs(place - first - step)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        at = np.arange(new), np.clip(first + step, 0, old - 1)
        np.add.at(weights, at, np.where(d <= 1, near, far))
    return weights


@checked()
def positions_between(
    positions: Float[Array, "patches width"], rows: int, columns: int
) -> Float[Array, "others width"]:
    """Return the embeddings of a grid's positions, from those of a square one.

    They are interpolated in float32, see `cubic_weights`.

    Args:
        positions: of the square grid, row by row.
        rows: of the other grid.
        columns: of the other grid.
    """
    side = round(len(positions) ** 0.5)
    if (rows, columns) == (side, side):
        return positions
    down, right = (jnp.asarray(cubic_weights(side, n), "f4") for n in (rows, columns))
    grid = positions.astype(jnp.float32).reshape(side, side, -1)
    found = jnp.einsum("iy,jx,yxc->ijc", down, right, grid, precision="highest")
    return found.reshape(rows * columns, -1).astype(positions.dtype)


class DINOv2(nnx.Module):
    """Patches and a class token through blocks, and a linear head or none.

    Taps: ``embed``, ``block0`` … and ``final`` (after the last norm), (batch, tokens,
    width) with the class token first; ``block{i}.attn``, what a block's attention adds;
    ``pooled`` (batch, 2·width), the class token beside the mean of the patches'.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        classes: int | None,
        image_size: int,
        patch_size: int,
        channels_in: int,
        *,
        hidden: int,
        swiglu: bool,
        layer_scale: float,
        mask_token: bool,
        epsilon: float,
        rngs: nnx.Rngs,
    ):
        width, depth, heads = size
        self.patches = PatchEmbed(
            image_size, patch_size, channels_in, width, any_size=True, rngs=rngs
        )
        self.prefix, self.positions = (
            nnx.Param(normal(rngs.params(), (1, tokens, width)))
            for tokens in (1, 1 + self.patches.tokens)
        )
        self.mask = nnx.Param(jnp.zeros((1, width))) if mask_token else None
        build = partial(
            Block,
            width,
            heads,
            0.0,
            hidden=hidden,
            epsilon=epsilon,
            layer_scale=layer_scale,
            rngs=rngs,
        )
        self.blocks = nnx.List(
            build(mlp=SwiGLU(width, hidden, rngs=rngs) if swiglu else None)
            for _ in range(depth)
        )
        self.norm = layer_norm(width, epsilon, rngs=rngs)
        self.head = (
            None
            if classes is None
            else linear(2 * width, classes, axes=("embed", "vocabulary"), rngs=rngs)
        )
        blocks = [f"block{i}" for i in range(depth)]
        self.cuts = ("embed", *blocks, "final", "pooled")
        self.taps = (*self.cuts, *(f"{block}.attn" for block in blocks))

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), None without a head, and the features."""
        steps = steps or Steps()
        x = steps("embed", self._embed, image)
        for i, block in enumerate(self.blocks):
            x = steps(f"block{i}", block, x, partial(steps.tap, f"block{i}.attn"))
        x = steps("final", self.norm, x)
        x = steps("pooled", _pooled, x)
        return steps.outputs(self.head or (lambda x: None), x)

    def _embed(self, image: Array) -> Array:
        x = self.patches(image)
        rows, columns = (side // self.patches.size for side in image.shape[1:3])
        positions = self.positions[...]
        patches = positions_between(positions[0, 1:], rows, columns)
        first = (self.prefix[...] + positions[:, :1]).astype(x.dtype)
        x = x + patches.astype(x.dtype)
        return jnp.concatenate([jnp.tile(first, (len(x), 1, 1)), x], axis=1)


def _pooled(x: Float[Array, "batch tokens width"]) -> Array:
    return jnp.concatenate([x[:, 0], x[:, 1:].mean(1)], axis=-1)


@checked(width=count, mlp_ratio=count)
def hidden_width(width: int, mlp_ratio: int, swiglu: bool) -> int:
    """Return the width of the MLPs: of SwiGLU's two thirds, as a multiple of 8."""
    hidden = width * mlp_ratio
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


@checked(classes=count, epsilon=positive)
@recorded
def dinov2(
    size: str | Sequence[int] = "small",
    classes: int | None = 1000,
    *,
    image_size: int = 518,
    patch_size: int = 14,
    channels_in: int = 3,
    mlp_ratio: int = 4,
    swiglu: bool = False,
    layer_scale: float = 1.0,
    mask_token: bool = False,
    epsilon: float = 1e-6,
) -> Network:
    """Return DINOv2's vision transformer, with a classifier or without.

    Images may have any height and width that patches tile: the positions' embeddings
    are interpolated.

    Args:
        size: ``"small"``, ``"base"``, ``"large"``, ``"giant"``, or (width, blocks,
            heads).
        classes: logits; None for no classifier, so that they are None and the features
            are all there is.
        image_size: side in pixels of the images that the positions are made for.
        patch_size: pixels of a patch's side.
        channels_in: the image's channels.
        mlp_ratio: width of the MLPs over that of a token; with SwiGLU a third is left
            out.
        swiglu: whether the MLPs are `SwiGLU`, as the giant's.
        layer_scale: what the branches' factors start at.
        mask_token: whether the variables hold the token that stands for patches that
            the first training hid; published weights do, and nothing here reads it.
        epsilon: of the norms.

    Raises:
        ValueError: an unknown size, a width that the heads do not divide, or patches
            that do not tile the image.
    """
    width, depth, heads = named_size(size, SIZES, "DINOv2")
    check_heads((width, depth, heads))
    return Network.from_nnx(
        lambda rngs: DINOv2(
            (width, depth, heads),
            classes,
            image_size,
            patch_size,
            channels_in,
            hidden=hidden_width(width, mlp_ratio, swiglu),
            swiglu=swiglu,
            layer_scale=layer_scale,
            mask_token=mask_token,
            epsilon=epsilon,
            rngs=rngs,
        )
    )
