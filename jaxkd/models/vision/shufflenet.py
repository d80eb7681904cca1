"""ShuffleNet V1 and V2 for CIFAR: grouped and split convolutions, mixed by shuffling.

Zhang et al. 2017 (arXiv:1707.01083) and Ma et al. 2018 (arXiv:1807.11164), in the form
of the distillation benchmarks: a 1x1 stem of 24 channels without stride or pooling.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.models.parts.blocks import (
    BatchNorm,
    Image,
    check_channels,
    conv,
    pool,
    run_blocks,
    stage_cuts,
    stage_taps,
    take_stage,
)
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs

STEM = 24


@checked()
def channel_shuffle(
    x: Float[Array, "batch height width channels"], groups: int
) -> Float[Array, "batch height width channels"]:
    """Deal the channels of every group out to all groups in turn."""
    shape = x.shape
    x = x.reshape(*shape[:-1], groups, shape[-1] // groups)
    return x.swapaxes(-1, -2).reshape(shape)


class BlockV1(nnx.Module):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions beside a shortcut.

    With stride 2 the shortcut is average-pooled and its channels are put beside the
    convolutions', otherwise both are added. The last ReLU is the caller's.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        groups: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        own = channels - channels_in if stride == 2 else channels
        middle = own // 4
        # The stem has too few channels to be split.
        self.groups = 1 if channels_in == STEM else groups
        self.conv1 = conv(channels_in, middle, 1, groups=self.groups, rngs=rngs)
        self.bn1 = BatchNorm(middle, rngs=rngs)
        self.conv2 = conv(middle, middle, 3, stride, groups=middle, rngs=rngs)
        self.bn2 = BatchNorm(middle, rngs=rngs)
        self.conv3 = conv(middle, own, 1, groups=groups, rngs=rngs)
        self.bn3 = BatchNorm(own, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the block's map before its ReLU."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = channel_shuffle(y, self.groups)
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            return x + y
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        pooled = nnx.avg_pool(padded, (3, 3), strides=(2, 2))
        return jnp.concatenate([y, pooled], axis=-1)


class ShuffleNetV1(nnx.Module):
    """A stem, three stages that halve the map, global pooling and a linear head.

    Taps: ``stage0`` (the stem) … ``stage3`` after the ReLU, ``stage{i}.pre`` before it,
    and ``pooled`` (batch, channels).
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Sequence[int],
        groups: int,
        classes: int,
        channels_in: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.channels_in = channels_in
        self.conv1 = conv(channels_in, STEM, 1, rngs=rngs)
        self.bn1 = BatchNorm(STEM, rngs=rngs)
        sizes = [STEM, *channels]
        self.layers = nnx.List(
            nnx.List(
                BlockV1(
                    sizes[i + 1] if j else sizes[i],
                    sizes[i + 1],
                    1 if j else 2,
                    groups,
                    rngs=rngs,
                )
                for j in range(depth)
            )
            for i, depth in enumerate(blocks)
        )
        self.fc = nnx.Linear(sizes[-1], classes, rngs=rngs)
        self.taps, self.cuts = stage_taps(len(sizes)), stage_cuts(len(sizes))

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = take_stage(steps, 0, self._stem, image)
        for i, blocks in enumerate(self.layers, start=1):
            x = take_stage(steps, i, run_blocks, blocks, x)
        return steps.outputs(self.fc, steps("pooled", pool, x))

    def _stem(self, image: Array) -> Array:
        return self.bn1(self.conv1(check_channels(image, self.channels_in)))


class BlockV2(nnx.Module):
    """Half of the channels pass by; the others go through 1x1, 3x3 and 1x1."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        half = channels // 2
        self.conv1 = conv(half, half, 1, rngs=rngs)
        self.bn1 = BatchNorm(half, rngs=rngs)
        self.conv2 = conv(half, half, groups=half, rngs=rngs)
        self.bn2 = BatchNorm(half, rngs=rngs)
        self.conv3 = conv(half, half, 1, rngs=rngs)
        self.bn3 = BatchNorm(half, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the shuffled map before its ReLU."""
        beside, y = jnp.split(x, 2, axis=-1)
        y = jax.nn.relu(self.bn1(self.conv1(y)))
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        return channel_shuffle(jnp.concatenate([beside, y], axis=-1), 2)


class DownV2(nnx.Module):
    """Two branches of stride 2, each with half of the new channels."""

    def __init__(self, channels_in: int, channels: int, *, rngs: nnx.Rngs):
        half = channels // 2
        self.conv1 = conv(channels_in, channels_in, 3, 2, channels_in, rngs=rngs)
        self.bn1 = BatchNorm(channels_in, rngs=rngs)
        self.conv2 = conv(channels_in, half, 1, rngs=rngs)
        self.bn2 = BatchNorm(half, rngs=rngs)
        self.conv3 = conv(channels_in, half, 1, rngs=rngs)
        self.bn3 = BatchNorm(half, rngs=rngs)
        self.conv4 = conv(half, half, 3, 2, half, rngs=rngs)
        self.bn4 = BatchNorm(half, rngs=rngs)
        self.conv5 = conv(half, half, 1, rngs=rngs)
        self.bn5 = BatchNorm(half, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the shuffled map before its ReLU."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        y = jax.nn.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(y))))
        return channel_shuffle(jnp.concatenate([left, right], axis=-1), 2)


class ShuffleNetV2(nnx.Module):
    """A stem, three stages that halve the map, a 1x1 convolution, pooling and a head.

    Taps: ``stage0`` (the stem) … ``stage3`` after the ReLU, ``stage{i}.pre`` before it,
    with the channels in the same order, and ``pooled`` (batch, channels).
    """

    def __init__(
        self,
        channels: Sequence[int],
        last: int,
        blocks: Sequence[int],
        classes: int,
        channels_in: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.channels_in = channels_in
        self.conv1 = conv(channels_in, STEM, 1, rngs=rngs)
        self.bn1 = BatchNorm(STEM, rngs=rngs)
        sizes = [STEM, *channels]
        self.layers = nnx.List(
            nnx.List(
                [
                    DownV2(sizes[i], sizes[i + 1], rngs=rngs),
                    *(BlockV2(sizes[i + 1], rngs=rngs) for _ in range(depth)),
                ]
            )
            for i, depth in enumerate(blocks)
        )
        self.conv2 = conv(sizes[-1], last, 1, rngs=rngs)
        self.bn2 = BatchNorm(last, rngs=rngs)
        self.fc = nnx.Linear(last, classes, rngs=rngs)
        self.taps, self.cuts = stage_taps(len(sizes)), stage_cuts(len(sizes))

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = take_stage(steps, 0, self._stem, image)
        for i, blocks in enumerate(self.layers, start=1):
            x = take_stage(steps, i, run_blocks, blocks, x)
        return steps.outputs(self.fc, steps("pooled", self._pooled, x))

    def _stem(self, image: Array) -> Array:
        return self.bn1(self.conv1(check_channels(image, self.channels_in)))

    def _pooled(self, x: Array) -> Array:
        return pool(jax.nn.relu(self.bn2(self.conv2(x))))


@checked()
@recorded
def shufflenet_v1(classes: int = 100, *, channels_in: int = 3) -> Network:
    """Return ShuffleNet V1 for CIFAR, with 3 groups and 240, 480 and 960 channels.

    Args:
        classes: logits.
        channels_in: the image's channels.
    """
    return Network.from_nnx(
        lambda rngs: ShuffleNetV1(
            (240, 480, 960), (4, 8, 4), 3, classes, channels_in, rngs=rngs
        )
    )


@checked()
@recorded
def shufflenet_v2(classes: int = 100, *, channels_in: int = 3) -> Network:
    """Return ShuffleNet V2 1x for CIFAR, with 116, 232, 464 and 1024 channels.

    Args:
        classes: logits.
        channels_in: the image's channels.
    """
    return Network.from_nnx(
        lambda rngs: ShuffleNetV2(
            (116, 232, 464), 1024, (3, 7, 3), classes, channels_in, rngs=rngs
        )
    )
