"""The U-Net of diffusion models: residual blocks and attention at several resolutions.

Ho et al. 2020 (arXiv:2006.11239) as Dhariwal and Nichol 2021 (arXiv:2105.05233) have
it ("ADM"): time and class scale and shift the second normalisation of every block, and
residual blocks change the resolution. The layer before every sum starts at 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, fraction
from jaxkd.models.diffusion.conditioning import INPUTS, Conditioning, unpack
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.vision.vit import Attention
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain_batch
from jaxkd.types import Outputs

zeros, lecun = nnx.initializers.zeros, nnx.initializers.lecun_normal()
Resample = Literal["", "down", "up"]


@checked()
class GroupNorm(nnx.GroupNorm):
    """GroupNorm that answers in its input's dtype and takes its variance exactly."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        super().__init__(
            channels, num_groups=groups, use_fast_variance=False, rngs=rngs
        )

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return the normalised input."""
        return super().__call__(x).astype(x.dtype)


def _conv(
    channels_in: int,
    channels: int,
    kernel: int = 3,
    *,
    kernel_init: Any = lecun,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    return nnx.Conv(
        channels_in, channels, (kernel, kernel), kernel_init=kernel_init, rngs=rngs
    )


@checked()
def resample(
    x: Float[Array, "batch height width channels"], how: Resample
) -> Float[Array, "batch new_height new_width channels"]:
    """Return a map averaged down by 2, or with every value repeated 2 x 2 times."""
    if how == "down":
        return reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)
    if how == "up":
        return repeat(x, "b h w c -> b (h i) (w j) c", i=2, j=2)
    return x


class ResBlock(nnx.Module):
    """Two normalised convolutions beside a shortcut, modulated by the embedding.

    Args:
        channels_in: of the input.
        channels: of the output.
        embedding: width of the time's and class's vector.
        groups: of the normalisations.
        dropout: rate before the last convolution.
        how: whether the resolution is halved or doubled.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        embedding: int,
        groups: int,
        dropout: float,
        how: Resample = "",
        *,
        rngs: nnx.Rngs,
    ):
        self.how: Resample = how
        self.norm1 = GroupNorm(channels_in, groups, rngs=rngs)
        self.conv1 = _conv(channels_in, channels, rngs=rngs)
        self.modulation = nnx.Linear(embedding, 2 * channels, rngs=rngs)
        self.norm2 = GroupNorm(channels, groups, rngs=rngs)
        self.drop = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.conv2 = _conv(channels, channels, kernel_init=zeros, rngs=rngs)
        self.shortcut = (
            None
            if channels_in == channels
            else _conv(channels_in, channels, 1, rngs=rngs)
        )

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch features"],
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        """Return the block's output."""
        y = self.conv1(resample(jax.nn.silu(self.norm1(x)), self.how))
        modulation = self.modulation(jax.nn.silu(embedding))[:, None, None]
        scale, shift = jnp.split(modulation, 2, axis=-1)
        y = jax.nn.silu(self.norm2(y) * (1 + scale) + shift)
        y = self.conv2(y if self.drop is None else self.drop(y))
        x = resample(x, self.how)
        return y + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """Normalised self-attention between all positions of a map, added to it."""

    def __init__(self, channels: int, heads: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups, rngs=rngs)
        self.attention = Attention(channels, heads, rngs=rngs)
        self.attention.projection = Linear(
            channels, channels, axes=("heads", "embed"), kernel_init=zeros, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch features"],
    ) -> Float[Array, "batch height width channels"]:
        """Return the map with what every position gathers from all."""
        tokens = rearrange(self.norm(x), "b h w c -> b (h w) c")
        return x + self.attention(tokens).reshape(x.shape)


class UNet(nnx.Module):
    """A U-Net of residual blocks, from noisy images to one value for each of theirs.

    Taps, all (batch, height, width, channels): ``down0`` … after each resolution on the
    way down, ``middle``, and ``up0`` … after each on the way up, ``up0`` at the full
    resolution.
    """

    def __init__(
        self,
        image_size: int,
        channels_in: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        head_channels: int,
        classes: int,
        groups: int,
        dropout: float,
        remat: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.shape = (image_size, image_size, channels_in)
        self.remat = remat
        width = 4 * channels
        self.conditioning = Conditioning(channels, width, classes, rngs=rngs)

        def block(before: int, after: int, how: Resample = "") -> ResBlock:
            return ResBlock(before, after, width, groups, dropout, how, rngs=rngs)

        def attend(features: int) -> SpatialAttention:
            return SpatialAttention(
                features, features // head_channels, groups, rngs=rngs
            )

        def unit(before: int, after: int, size: int):
            attended = [attend(after)] if size in attention else []
            return nnx.List([block(before, after), *attended])

        sizes = [image_size // 2**i for i in range(len(multipliers))]
        features, skips = channels, [channels]
        self.stem = _conv(channels_in, channels, rngs=rngs)
        self.down, self.downsample = nnx.List([]), nnx.List([])
        for i, (size, multiplier) in enumerate(zip(sizes, multipliers, strict=True)):
            units = []
            for _ in range(blocks):
                units.append(unit(features, channels * multiplier, size))
                features = channels * multiplier
                skips.append(features)
            self.down.append(nnx.List(units))
            if i + 1 < len(sizes):
                self.downsample.append(block(features, features, "down"))
                skips.append(features)
        self.middle = nnx.List(
            [block(features, features), attend(features), block(features, features)]
        )
        ups, upsamples = [], []
        for i in reversed(range(len(sizes))):
            units = []
            for _ in range(blocks + 1):
                after = channels * multipliers[i]
                units.append(unit(features + skips.pop(), after, sizes[i]))
                features = after
            ups.append(nnx.List(units))
            if i:
                upsamples.append(block(features, features, "up"))
        # Kept from the full resolution down, as the way down is.
        self.up = nnx.List(reversed(ups))
        self.upsample = nnx.List(reversed(upsamples))
        self.norm = GroupNorm(features, groups, rngs=rngs)
        self.head = _conv(features, channels_in, kernel_init=zeros, rngs=rngs)
        levels = range(len(sizes))
        self.taps = (
            *(f"down{i}" for i in levels),
            "middle",
            *(f"up{i}" for i in levels),
        )

    def _run(self, layer: nnx.Module, x: Array, embedding: Array) -> Array:
        call: Callable = lambda m, x, e: m(x, e)  # noqa: E731
        layer_call = nnx.remat(call) if self.remat else call
        return layer_call(layer, constrain_batch(x), embedding)

    def __call__(
        self, inputs: dict[str, Array], *, steps: Steps | None = None
    ) -> Outputs:
        """Return one value for each of the image's as logits, and the features."""
        steps = steps or Steps()
        return steps.outputs(self._pixels, inputs, steps)

    def _pixels(self, inputs: dict[str, Array], steps: Steps) -> Array:
        image, time, condition = unpack(inputs, self.shape)
        embedding = self.conditioning(time, condition, image.dtype)
        x = self.stem(image)
        skips = [x]
        for i, level in enumerate(self.down):
            for unit in level:
                for layer in unit:
                    x = self._run(layer, x, embedding)
                skips.append(x)
            x = skips[-1] = steps.tap(f"down{i}", x)
            if i < len(self.downsample):
                x = self._run(self.downsample[i], x, embedding)
                skips.append(x)
        for layer in self.middle:
            x = self._run(layer, x, embedding)
        x = steps.tap("middle", x)
        for i, level in reversed(list(enumerate(self.up))):
            for unit in level:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                for layer in unit:
                    x = self._run(layer, x, embedding)
            x = steps.tap(f"up{i}", x)
            if i:
                x = self._run(self.upsample[i - 1], x, embedding)
        return self.head(jax.nn.silu(self.norm(x)))


@checked(dropout=fraction)
@recorded
def unet(
    image_size: int = 64,
    *,
    channels_in: int = 3,
    channels: int = 192,
    multipliers: Sequence[int] = (1, 2, 3, 4),
    blocks: int = 3,
    attention: Sequence[int] = (32, 16, 8),
    head_channels: int = 64,
    classes: int = 0,
    groups: int = 32,
    dropout: float = 0.0,
    remat: bool = False,
) -> Network:
    """Return a diffusion model's U-Net; the defaults are ADM's for ImageNet at 64.

    Its inputs are a dict of ``image``, ``time`` and, with classes, ``condition``; see
    `conditioning`. Its logits are (batch, height, width, channels_in).

    Args:
        image_size: pixels of the square image's side.
        channels_in: the image's channels.
        channels: of the maps at full resolution.
        multipliers: of the channels at each resolution, halved from one to the next.
        blocks: residual blocks at each resolution on the way down; one more on the
            way up.
        attention: the resolutions (pixels of a side) with self-attention; the middle
            has it always.
        head_channels: features of one attention head.
        classes: that images belong to; 0 for a model without.
        groups: of every GroupNorm.
        dropout: rate in every residual block.
        remat: whether the backward pass computes every block's inside again, for less
            memory.

    Raises:
        ValueError: an image that cannot be halved as often, channels that the groups or
            heads do not divide, or an attention resolution that does not occur.
    """
    levels = len(multipliers)
    if levels < 1 or image_size % 2 ** (levels - 1):
        raise ValueError(
            f"image_size {image_size} cannot be halved {levels - 1} times, as "
            f"{levels} multipliers ask: give fewer, or pad the image"
        )
    sizes = [image_size // 2**i for i in range(levels)]
    if not set(attention) <= set(sizes):
        raise ValueError(
            f"attention names the resolutions {tuple(attention)}, but the network has "
            f"{tuple(sizes)}"
        )
    for size, multiplier in zip(sizes, multipliers, strict=True):
        width = channels * multiplier
        heads = size in attention or size == sizes[-1]
        if width % groups or (heads and width % head_channels):
            raise ValueError(
                f"{width} channels at resolution {size} must be a multiple of groups "
                f"({groups}) and, with attention, of head_channels ({head_channels})"
            )
    return Network.from_nnx(
        lambda rngs: UNet(
            image_size,
            channels_in,
            channels,
            multipliers,
            blocks,
            attention,
            head_channels,
            classes,
            groups,
            dropout,
            remat,
            rngs=rngs,
        ),
        reads=INPUTS,
    )
