"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146) for CIFAR."""

from collections.abc import Sequence
from itertools import pairwise

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.models.parts.blocks import BatchNorm, check_channels, conv, stage_taps
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

    def __call__(self, image: Float[Array, "batch height width channels"]) -> Outputs:
        """Return logits (batch, classes) and every stage."""
        check_channels(image, self.channels_in)
        x = self.conv1(image)
        features = {"stage0": x, "stage0.pre": x}
        for i, layer in enumerate(self.layers):
            for j, block in enumerate(layer):
                normal = block.bn1(x)
                if i > 0 and j == 0:
                    features[f"stage{i}.pre"] = normal
                x = block(x, normal)
            features[f"stage{i + 1}"] = x
        features["stage3.pre"] = self.bn1(x)
        pooled = jax.nn.relu(features["stage3.pre"]).mean((1, 2))
        return Outputs(self.fc(pooled), {**features, "pooled": pooled})


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
