"""Residual networks (He et al. 2015, arXiv:1512.03385) for CIFAR and ImageNet.

``stage0`` is the stem and ``stage1`` … are the stages, so ``stage{i}`` is the feature
with number i of the distillation benchmarks on CIFAR-100.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, own_check
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

Shortcut = Literal["projection", "identity"]


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut; the last ReLU is the caller's."""

    expansion = 1

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        shortcut: Shortcut,
        *,
        rngs: nnx.Rngs,
    ):
        self.conv1 = conv(channels_in, channels, 3, stride, rngs=rngs)
        self.bn1 = BatchNorm(channels, rngs=rngs)
        self.conv2 = conv(channels, channels, rngs=rngs)
        self.bn2 = BatchNorm(channels, rngs=rngs)
        self.downsample = _downsample(channels_in, channels, stride, shortcut, rngs)

    def __call__(self, x: Array) -> Array:
        """Return the sum before its ReLU."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(y)) + self.downsample(x)


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions; the last ReLU is the caller's.

    He et al. put the stride in the first convolution; in the second, as in the weights
    that everyone uses, it is more accurate by about half a percent on ImageNet.
    """

    expansion = 4

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        shortcut: Shortcut,
        *,
        rngs: nnx.Rngs,
    ):
        out = channels * self.expansion
        self.conv1 = conv(channels_in, channels, 1, rngs=rngs)
        self.bn1 = BatchNorm(channels, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, stride, rngs=rngs)
        self.bn2 = BatchNorm(channels, rngs=rngs)
        self.conv3 = conv(channels, out, 1, rngs=rngs)
        self.bn3 = BatchNorm(out, rngs=rngs)
        self.downsample = _downsample(channels_in, out, stride, shortcut, rngs)

    def __call__(self, x: Array) -> Array:
        """Return the sum before its ReLU."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        return self.bn3(self.conv3(y)) + self.downsample(x)


class Projection(nnx.Module):
    """A shortcut that a 1x1 convolution and BatchNorm make (He et al.'s option B)."""

    def __init__(self, channels_in: int, channels: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = conv(channels_in, channels, 1, stride, rngs=rngs)
        self.bn = BatchNorm(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the projected map."""
        return self.bn(self.conv(x))


class Identity(nnx.Module):
    """A shortcut without parameters (He et al.'s option A).

    It takes every ``stride``-th pixel and fills up channels with zeros, as many before
    as after.
    """

    def __init__(self, channels_in: int, channels: int, stride: int):
        self.stride, self.padding = stride, (channels - channels_in) // 2

    def __call__(self, x: Array) -> Array:
        """Return the map in its new size."""
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (self.padding,) * 2))


def _downsample(
    channels_in: int, channels: int, stride: int, shortcut: Shortcut, rngs: nnx.Rngs
) -> nnx.Module:
    if shortcut == "identity" or (stride == 1 and channels_in == channels):
        return Identity(channels_in, channels, stride)
    return Projection(channels_in, channels, stride, rngs=rngs)


class ResNet(nnx.Module):
    """A stem, stages of residual blocks, global average pooling and a linear head.

    Every stage but the first halves the map. Taps: ``stage0`` (the stem), ``stage1`` …
    (batch, height, width, channels) after the ReLU, ``stage{i}.pre`` before it, and
    ``pooled`` (batch, channels).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        classes: int,
        *,
        channels_in: int = 3,
        shortcut: Shortcut = "projection",
        large_stem: bool = False,
        rngs: nnx.Rngs,
    ):
        self.channels_in, self.large_stem = channels_in, large_stem
        self.conv1 = (
            conv(channels_in, widths[0], 7, 2, rngs=rngs)
            if large_stem
            else conv(channels_in, widths[0], rngs=rngs)
        )
        self.bn1 = BatchNorm(widths[0], rngs=rngs)
        sizes = [widths[0], *(width * block.expansion for width in widths[1:])]
        self.layers = nnx.List(
            nnx.List(
                block(
                    before if i == 0 else after,
                    after // block.expansion,
                    2 if i == 0 and stage > 0 else 1,
                    shortcut,
                    rngs=rngs,
                )
                for i in range(depth)
            )
            for stage, (depth, (before, after)) in enumerate(
                zip(depths, pairwise(sizes), strict=True)
            )
        )
        self.fc = nnx.Linear(sizes[-1], classes, rngs=rngs)
        self.taps, self.cuts = stage_taps(len(sizes)), stage_cuts(len(sizes))

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = take_stage(steps, 0, self._stem, image)
        if self.large_stem:
            x = steps(None, _halved, x)
        for i, blocks in enumerate(self.layers, start=1):
            x = take_stage(steps, i, run_blocks, blocks, x)
        return steps.outputs(self.fc, steps("pooled", pool, x))

    def _stem(self, image: Array) -> Array:
        return self.bn1(self.conv1(check_channels(image, self.channels_in)))


def _halved(x: Array) -> Array:
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # ReLU's zeros lose
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


@checked(shortcut=own_check)
@recorded
def cifar_resnet(
    depth: int | Sequence[int] = 20,
    classes: int = 100,
    *,
    widths: Sequence[int] = (16, 16, 32, 64),
    shortcut: Shortcut = "projection",
    channels_in: int = 3,
) -> Network:
    """Return a CIFAR ResNet: He et al.'s, Section 4.2, of 6n + 2 layers.

    The benchmarks' resnet8x4 and resnet32x4 are depths 8 and 32 with widths
    (32, 64, 128, 256).

    Args:
        depth: layers, 6n + 2: 8, 14, 20, 32, 44, 56, 110, …; or the blocks of each of
            the three stages, such as (5, 5, 7).
        classes: logits.
        widths: channels of the stem and of the three stages.
        shortcut: where the size changes: ``"projection"`` as in the distillation
            benchmarks, or ``"identity"`` without parameters, as He et al. did.
        channels_in: the image's channels.

    Raises:
        ValueError: a depth that is not 6n + 2 or three positive numbers, widths that
            are not four or that the shortcut cannot fill up, or an unknown shortcut.
    """
    depths = _stage_depths(depth)
    _check(widths, 4, shortcut)
    return Network.from_nnx(
        lambda rngs: ResNet(
            BasicBlock,
            depths,
            widths,
            classes,
            channels_in=channels_in,
            shortcut=shortcut,
            rngs=rngs,
        )
    )


def _stage_depths(depth: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(depth, int):
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"depth must be 6n + 2, such as 8, 20, 32, 44, 56 or 110, got {depth}"
            )
        return ((depth - 2) // 6,) * 3
    if len(depth) != 3 or min(depth) < 1:
        raise ValueError(
            "depth must be 6n + 2, or the blocks of three stages such as (5, 5, 7), "
            f"got {tuple(depth)}"
        )
    return tuple(depth)


BLOCKS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
"""The block and blocks a stage of ImageNet ResNets, by depth."""


@checked(stem=own_check)
@recorded
def imagenet_resnet(
    depth: int | Sequence[int] = 50,
    classes: int = 1000,
    *,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    channels_in: int = 3,
    widths: Sequence[int] = (64, 64, 128, 256, 512),
    bottleneck: bool = False,
) -> Network:
    """Return an ImageNet ResNet: He et al.'s, Table 1.

    Args:
        depth: 18, 34 or 50; or the blocks of each stage, such as (3, 4, 23, 3).
        classes: logits.
        stem: ``"imagenet"``, a 7x7 convolution of stride 2 and max-pooling (not in the
            tap ``stage0``), or ``"cifar"``, a 3x3 convolution: the teacher ResNet-50 of
            the CIFAR-100 benchmarks.
        channels_in: the image's channels.
        widths: channels of the stem and of the stages; those of bottlenecks are before
            their last convolution, which makes them four times as many.
        bottleneck: whether blocks given by stage are bottlenecks; not read where
            ``depth`` is a number.

    Raises:
        ValueError: another depth or stem, or widths that do not fit the stages.
    """
    block = Bottleneck if bottleneck else BasicBlock
    if isinstance(depth, int):
        block, depths = BLOCKS.get(depth, (block, ()))
    else:
        depths = tuple(depth)
    if min(depths, default=0) < 1 or stem not in ("imagenet", "cifar"):
        raise ValueError(
            f"depth must be one of {', '.join(map(str, BLOCKS))}, or the blocks of "
            f"each stage, and stem 'imagenet' or 'cifar', got {depth} and {stem!r}"
        )
    _check(widths, len(depths) + 1, "projection")
    return Network.from_nnx(
        lambda rngs: ResNet(
            block,
            depths,
            widths,
            classes,
            channels_in=channels_in,
            large_stem=stem == "imagenet",
            rngs=rngs,
        )
    )


def _check(widths: Sequence[int], count: int, shortcut: str) -> None:
    if len(widths) != count or min(widths) < 1:
        raise ValueError(
            f"widths must be {count} positive numbers, the stem's and the stages', got "
            f"{tuple(widths)}"
        )
    if shortcut not in ("projection", "identity"):
        raise ValueError(
            f"shortcut must be 'projection' or 'identity', got {shortcut!r}"
        )
    if shortcut == "identity" and any(
        b < a or (b - a) % 2 for a, b in pairwise(widths)
    ):
        raise ValueError(
            "shortcut 'identity' fills up channels, half of them on each side: widths "
            f"must grow by even numbers, got {tuple(widths)}"
        )
