"""A small convolutional network in stages, for digits and quick experiments."""

from collections.abc import Sequence
from itertools import pairwise

import jax
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.models.parts.blocks import (
    BatchNorm,
    Image,
    check_channels,
    pool,
    stage_cuts,
    stage_taps,
    take_stage,
)
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs


class Stage(nnx.Module):
    """3x3 convolutions with BatchNorm, ReLU between them and not after the last."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        depth: int = 1,
        *,
        rngs: nnx.Rngs,
    ):
        self.convs = nnx.List(
            nnx.Conv(
                channels_in if i == 0 else channels,
                channels,
                (3, 3),
                strides=(stride if i == 0 else 1,) * 2,
                use_bias=False,
                rngs=rngs,
            )
            for i in range(depth)
        )
        self.norms = nnx.List(BatchNorm(channels, rngs=rngs) for _ in range(depth))

    def __call__(self, x: Array) -> Array:
        """Return the last normalised map, before its ReLU."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if i == 0 else jax.nn.relu(x)))
        return x


class CNN(nnx.Module):
    """Stages of conv-BatchNorm-ReLU, global average pooling and a linear head.

    Every stage but the first halves the map. Taps: ``stage0`` … (batch, height, width,
    channels) after the ReLU, ``stage0.pre`` … before it, and ``pooled`` (batch,
    channels).
    """

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        classes: int,
        depth: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.channels_in = channels_in
        sizes = [channels_in, *channels]
        self.stages = nnx.List(
            Stage(a, b, 1 if i == 0 else 2, depth, rngs=rngs)
            for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.head = nnx.Linear(sizes[-1], classes, rngs=rngs)
        self.taps, self.cuts = stage_taps(len(channels)), stage_cuts(len(channels))

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps(None, check_channels, image, self.channels_in)
        for i, stage in enumerate(self.stages):
            x = take_stage(steps, i, stage, x)
        return steps.outputs(self.head, steps("pooled", pool, x))


@checked()
@recorded
def cnn(
    channels_in: int = 1,
    channels: Sequence[int] = (16, 32, 64),
    classes: int = 10,
    depth: int = 1,
) -> Network:
    """Return a small convolutional network.

    Args:
        channels_in: the image's channels.
        channels: of each stage.
        classes: logits.
        depth: convolutions in a stage.
    """
    return Network.from_nnx(
        lambda rngs: CNN(channels_in, channels, classes, depth, rngs=rngs)
    )
