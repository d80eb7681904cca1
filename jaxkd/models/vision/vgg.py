"""VGG (Simonyan and Zisserman 2014, arXiv:1409.1556) for CIFAR, with BatchNorm.

The form of the distillation benchmarks: five stages, max-pooling after the first three
only, and global average pooling in place of the hidden linear layers.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.models.parts.blocks import (
    BatchNorm,
    Image,
    check_channels,
    conv,
    pool,
    stage_cuts,
    stage_taps,
    take_stage,
)
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {8: 1, 13: 2}
"""Convolutions a stage, by depth."""


class Stage(nnx.Module):
    """3x3 convolutions with BatchNorm; the last ReLU is the caller's."""

    def __init__(self, channels_in: int, channels: int, depth: int, *, rngs: nnx.Rngs):
        self.convs = nnx.List(
            conv(channels if i else channels_in, channels, bias=True, rngs=rngs)
            for i in range(depth)
        )
        self.norms = nnx.List(BatchNorm(channels, rngs=rngs) for _ in range(depth))

    def __call__(self, x: Array) -> Array:
        """Return the last normalised map."""
        for i, (convolve, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(convolve(jax.nn.relu(x) if i else x))
        return x


class VGG(nnx.Module):
    """Five stages, global average pooling and a linear head.

    Taps: ``stage0`` … ``stage4`` (batch, height, width, channels) after the ReLU and
    before the pooling, ``stage{i}.pre`` before the ReLU, ``pooled`` (batch, channels).
    """

    def __init__(
        self,
        channels: Sequence[int],
        depth: int,
        classes: int,
        channels_in: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.channels_in = channels_in
        sizes = [channels_in, *channels]
        self.stages = nnx.List(
            Stage(sizes[i], sizes[i + 1], depth, rngs=rngs)
            for i in range(len(channels))
        )
        self.fc = nnx.Linear(sizes[-1], classes, rngs=rngs)
        self.taps, self.cuts = stage_taps(len(channels)), stage_cuts(len(channels))

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps(None, check_channels, image, self.channels_in)
        for i, stage in enumerate(self.stages):
            x = take_stage(steps, i, stage, x)
            if i < 3:
                x = steps(None, nnx.max_pool, x, (2, 2), (2, 2))
        return steps.outputs(self.fc, steps("pooled", pool, x))


@checked()
@recorded
def vgg(depth: int = 8, classes: int = 100, *, channels_in: int = 3) -> Network:
    """Return VGG-8 or VGG-13 for CIFAR.

    Args:
        depth: 8 or 13.
        classes: logits.
        channels_in: the image's channels.

    Raises:
        ValueError: another depth.
    """
    if depth not in CONVOLUTIONS:
        raise ValueError(
            f"depth must be one of {', '.join(map(str, CONVOLUTIONS))}, got {depth}"
        )
    return Network.from_nnx(
        lambda rngs: VGG(CHANNELS, CONVOLUTIONS[depth], classes, channels_in, rngs=rngs)
    )
