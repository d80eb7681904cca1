"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545): a ResNet made like a transformer."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, positive
from jaxkd.models.parts.blocks import Image, check_channels, pool
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.tokens import MLP, layer_norm, linear, named_size, normal
from jaxkd.network import Network
from jaxkd.types import Outputs

SIZES = {
    "tiny": (96, 3, 3, 9, 3),
    "small": (96, 3, 3, 27, 3),
    "base": (128, 3, 3, 27, 3),
}
"""Channels of the first stage and blocks of the four."""


@checked()
def patchify(channels_in: int, channels: int, size: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    """Return a convolution over patches that do not overlap."""
    return nnx.Conv(
        channels_in,
        channels,
        (size, size),
        strides=size,
        padding="VALID",
        kernel_init=normal,
        rngs=rngs,
    )


class ConvNeXtBlock(nnx.Module):
    """A depthwise 7x7 convolution and an MLP over channels, scaled before adding."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(
            channels,
            channels,
            (7, 7),
            padding=3,
            feature_group_count=channels,
            kernel_init=normal,
            rngs=rngs,
        )
        self.norm = layer_norm(channels, rngs=rngs)
        self.mlp = MLP(channels, 4 * channels, rngs=rngs)
        self.scale = nnx.Param(jnp.full(channels, 1e-6, jnp.float32))

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Return a map of the same size."""
        return x + self.scale[...] * self.mlp(self.norm(self.depthwise(x)))


class ConvNeXt(nnx.Module):
    """A stem of 4x4 patches, four stages of blocks, pooling and a linear head.

    Every stage but the first begins by halving the map. Taps:
    ``stage0`` (the stem), ``stage1`` … ``stage4`` (batch, height, width, channels), and
    ``pooled`` (batch, channels), normalised.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        classes: int,
        channels_in: int,
        epsilon: float,
        *,
        rngs: nnx.Rngs,
    ):
        width = widths[0]
        self.channels_in = channels_in
        self.stem = patchify(channels_in, width, 4, rngs=rngs)
        self.norm0 = layer_norm(width, rngs=rngs)
        self.norms, self.halve, self.stages = nnx.List(), nnx.List(), nnx.List()
        for i, (depth, after) in enumerate(zip(depths, widths, strict=True)):
            if i:
                self.norms.append(layer_norm(width, rngs=rngs))
                self.halve.append(patchify(width, after, 2, rngs=rngs))
            width = after
            self.stages.append(
                nnx.List(ConvNeXtBlock(width, rngs=rngs) for _ in range(depth))
            )
        self.norm = layer_norm(width, epsilon, rngs=rngs)
        self.head = linear(width, classes, axes=("embed", "vocabulary"), rngs=rngs)
        self.taps = self.cuts = (*(f"stage{i}" for i in range(5)), "pooled")

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for.

        Raises:
            ValueError: an image of other channels, or whose sides 32 does not divide.
        """
        steps = steps or Steps()
        x = steps("stage0", self._stem, image)
        for i in range(1, 5):
            x = steps(f"stage{i}", self._stage, i, x)
        x = steps("pooled", lambda x: self.norm(pool(x)), x)
        return steps.outputs(self.head, x)

    def _stem(self, image: Array) -> Array:
        check_channels(image, self.channels_in)
        if image.shape[1] % 32 or image.shape[2] % 32:
            raise ValueError(
                f"image has shape {image.shape}, but its height and width must be "
                "multiples of 32: resize it"
            )
        return self.norm0(self.stem(image))

    def _stage(self, number: int, x: Array) -> Array:
        if number > 1:
            x = self.halve[number - 2](self.norms[number - 2](x))
        for block in self.stages[number - 1]:
            x = block(x)
        return x


@checked()
def stages(
    size: str | Sequence[int], widths: Sequence[int] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the blocks and the channels of each stage, as `convnext` takes them.

    Raises:
        ValueError: an unknown size, or other than four positive widths.
    """
    width, *depths = named_size(size, SIZES, "ConvNeXt")
    found = [width * 2**i for i in range(4)] if widths is None else widths
    if len(found) != 4 or min(found) < 1:
        raise ValueError(f"widths must be 4 positive numbers, got {tuple(found)}")
    return tuple(depths), tuple(found)


@checked(epsilon=positive)
@recorded
def convnext(
    size: str | Sequence[int] = "tiny",
    classes: int = 1000,
    *,
    channels_in: int = 3,
    widths: Sequence[int] | None = None,
    epsilon: float = 1e-6,
) -> Network:
    """Return a ConvNeXt.

    Args:
        size: ``"tiny"``, ``"small"``, ``"base"``, or five numbers: the first stage's
            channels and the blocks of the four stages.
        classes: logits.
        channels_in: the image's channels.
        widths: channels of the four stages; None for twice as many from each to the
            next.
        epsilon: of the norm before the head; the others have 1e-6.

    Raises:
        ValueError: an unknown size, or other than four positive widths.
    """
    depths, channels = stages(size, widths)
    return Network.from_nnx(
        lambda rngs: ConvNeXt(
            depths, channels, classes, channels_in, epsilon, rngs=rngs
        )
    )
