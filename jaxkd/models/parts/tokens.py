"""What vision transformers and mixers share: patches, two-layer MLPs, named sizes."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.arguments import checked, count, natural, positive
from jaxkd.checks import unknown_name
from jaxkd.losses.masked_images import patchify
from jaxkd.models.parts.blocks import check_channels, check_floats
from jaxkd.models.parts.linear import Linear

normal = nnx.initializers.truncated_normal(0.02)
"""How weights start in DeiT and ResMLP: a truncated normal of deviation 0.02."""


@checked()
def named_size(
    size: str | Sequence[int], named: Mapping[str, tuple[int, ...]], model: str
) -> tuple[int, ...]:
    """Return the numbers of a size given by name, or the numbers given.

    Args:
        size: a key of ``named``, or as many numbers as its values have.
        named: the published sizes.
        model: its name, for the error.

    Raises:
        ValueError: an unknown name, or numbers that are too few, too many or below 1.
    """
    if isinstance(size, str):
        if size not in named:
            raise ValueError(unknown_name(f"{model} size", size, named))
        return named[size]
    (count,) = {len(numbers) for numbers in named.values()}
    if len(size) != count or min(size) < 1:
        raise ValueError(
            f"size must be {count} positive numbers or one of {', '.join(named)}, got "
            f"{tuple(size)}"
        )
    return tuple(size)


linear = partial(Linear, kernel_init=normal)
"""A linear layer that starts as `normal`."""


@checked(epsilon=positive)
def layer_norm(width: int, epsilon: float = 1e-6, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Return a layer norm with ε = 1e-6, as ViT and Mixer have it, or another."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


@checked(side=count, width=count, prefix=natural)
def grid_positions(
    side: int, width: int, prefix: int = 0
) -> Float[np.ndarray, "tokens width"]:
    """Return sines and cosines of the rows and columns of a square grid of patches.

    Args:
        side: patches in a row.
        width: of one position's vector, a multiple of 4.
        prefix: tokens before the patches', such as a class token, whose rows are 0.

    Raises:
        ValueError: a width that 4 does not divide.
    """
    if width % 4:
        raise ValueError(
            f"width must be a multiple of 4, got {width}: a sine and a cosine of row "
            "and column each take a quarter"
        )
    frequency = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    angle = np.arange(side)[:, None] * frequency
    waves = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    rows, columns = np.repeat(waves, side, axis=0), np.tile(waves, (side, 1))
    grid = np.concatenate([columns, rows], axis=-1).astype(np.float32)
    return np.concatenate([np.zeros((prefix, width), np.float32), grid])


class PatchEmbed(nnx.Module):
    """Cut an image into square patches and project each linearly.

    It is the convolution of published code with its kernel (size, size, channels,
    width) flattened: as a product of matrices its gradient takes a fifth of the time on
    CPUs.

    Args:
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        channels_in: the image's channels.
        width: features of an embedding.
        use_bias: whether the projection has one.
        any_size: whether images of other sizes, which patches tile, are taken too.

    Raises:
        ValueError: the patches do not tile the image.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels_in: int,
        width: int,
        use_bias: bool = True,
        any_size: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise ValueError(
                f"patch_size {patch_size} does not tile images of {image_size} pixels: "
                "make image_size a multiple of it"
            )
        self.shape, self.any_size = (image_size, image_size, channels_in), any_size
        self.size, self.tokens = patch_size, (image_size // patch_size) ** 2
        features_in = patch_size**2 * channels_in
        self.projection = linear(
            features_in, width, axes=("heads", "embed"), use_bias=use_bias, rngs=rngs
        )

    def __call__(
        self, image: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch tokens features"]:
        """Return one embedding a patch, row by row.

        Raises:
            ValueError: an image of another size, or not of floats.
        """
        if self.any_size:
            return self.projection(
                patchify(check_channels(image, self.shape[-1]), self.size)
            )
        check_floats(image)
        if image.shape[1:] != self.shape:
            raise ValueError(
                f"image has shape {image.shape}, but this model takes (batch, "
                f"{', '.join(map(str, self.shape))}): resize it, or build the model "
                "with its image_size and channels_in"
            )
        return self.projection(patchify(image, self.size))


class MLP(nnx.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = linear(width, hidden, axes=("embed", "hidden"), rngs=rngs)
        self.fc2 = linear(hidden, width, axes=("hidden", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch *rows features"]
    ) -> Float[Array, "batch *rows features"]:
        """Return as many features."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
