"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146) for CIFAR."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import jax
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps, Tap, unchanged
from jaxkd.arguments import checked, fraction
from jaxkd.models.parts.blocks import (
    BatchNorm,
    Image,
    check_channels,
    conv,
    pool,
    stage_taps,
)
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs


class Block(nnx.Module):
    """BatchNorm, ReLU and convolution, twice, beside a shortcut (pre-activation)."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.bn1 = BatchNorm(channels_in, rngs=rngs)
        self.conv1 = conv(channels_in, channels, 3, stride, rngs=rngs)
        self.bn2 = BatchNorm(channels, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.conv2 = conv(channels, channels, rngs=rngs)
        self.shortcut = (
            None
            if channels_in == channels
            else conv(channels_in, channels, 1, stride, rngs=rngs)
        )

    def __call__(self, x: Array, normal: Array) -> Array:
        """Return the sum of both branches, given the input and ``bn1`` of it."""
        active = jax.nn.relu(normal)
        y = jax.nn.relu(self.bn2(self.conv1(active)))
        if self.dropout is not None:
            y = self.dropout(y)
        return self.conv2(y) + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nnx.Module):
    """A stem, three stages, BatchNorm, ReLU, global average pooling and a linear head.

    The stages' blocks end in a sum without ReLU. Taps, as in the benchmarks on
    CIFAR-100: ``stage0`` (the stem) and ``stage1`` … ``stage3``, these sums; and
    ``stage1.pre`` … ``stage3.pre``, what the next BatchNorm makes of them, before its
    ReLU (``stage0.pre`` is ``stage0``); ``pooled`` (batch, channels).
    """

    def __init__(
        self,
        depth: int,
        widths: Sequence[int],
        classes: int,
        dropout: float,
        channels_in: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.channels_in = channels_in
        self.conv1 = conv(channels_in, widths[0], rngs=rngs)
        self.layers = nnx.List(
            nnx.List(
                Block(
                    before if i == 0 else after,
                    after,
                    2 if i == 0 and stage > 0 else 1,
                    dropout,
                    rngs=rngs,
                )
                for i in range((depth - 4) // 6)
            )
            for stage, (before, after) in enumerate(pairwise(widths))
        )
        self.bn1 = BatchNorm(widths[-1], rngs=rngs)
        self.fc = nnx.Linear(widths[-1], classes, rngs=rngs)
        self.taps = stage_taps(len(widths))
        # The other stages' normalised maps are beside their sums, which go on too.
        sums = (f"stage{i}" for i in range(1, 4))
        self.cuts = ("stage0", "stage0.pre", *sums, "stage3.pre", "pooled")

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps(None, check_channels, image, self.channels_in)
        x = steps("stage0", self.conv1, x)
        x = steps("stage0.pre", unchanged, x)
        for i, blocks in enumerate(self.layers):
            tap = partial(steps.tap, f"stage{i}.pre") if i else unchanged
            x = steps(f"stage{i + 1}", _stage, blocks, x, tap)
        x = steps("stage3.pre", self.bn1, x)
        return steps.outputs(self.fc, steps("pooled", _pooled, x))


def _stage(blocks: Sequence[Block], x: Array, tap: Tap) -> Array:
    first, *others = blocks
    x = first(x, tap(first.bn1(x)))
    for block in others:
        x = block(x, block.bn1(x))
    return x


def _pooled(x: Array) -> Array:
    return pool(jax.nn.relu(x))


@checked(dropout=fraction)
@recorded
def wide_resnet(
    depth: int = 40,
    width: int = 2,
    classes: int = 100,
    *,
    dropout: float = 0.0,
    channels_in: int = 3,
) -> Network:
    """Return WRN-depth-width for CIFAR, such as WRN-40-2 and WRN-16-2.

    Args:
        depth: layers, 6n + 4.
        width: factor on the stages' 16, 32 and 64 channels.
        classes: logits.
        dropout: rate between a block's convolutions.
        channels_in: the image's channels.

    Raises:
        ValueError: a depth that is not 6n + 4, or a width below 1.
    """
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise ValueError(
            f"depth must be 6n + 4, such as 16, 22, 28 or 40, and width at least 1, "
            f"got {depth} and {width}"
        )
    widths = (16, 16 * width, 32 * width, 64 * width)
    return Network.from_nnx(
        lambda rngs: WideResNet(depth, widths, classes, dropout, channels_in, rngs=rngs)
    )
