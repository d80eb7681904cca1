"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) for CIFAR and ImageNet.

The CIFAR form is that of the distillation benchmarks: stride 2 in the stem and in three
of the four stages that have it for ImageNet, ReLU in place of ReLU6, and a 1x1
convolution in the first block too, which expands nothing. Google's weights were trained
with TensorFlow's padding and an epsilon of 1e-3, both of which are options here.
"""

from collections.abc import Iterable
from functools import partial
from typing import Literal, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps, unchanged
from jaxkd.arguments import checked, count, own_check, positive
from jaxkd.models.parts.blocks import (
    BatchNorm,
    Image,
    check_channels,
    conv,
    pool,
    stage_cuts,
    stage_taps,
)
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs

Form = Literal["cifar", "imagenet"]

ACTIVATIONS = {"cifar": jax.nn.relu, "imagenet": jax.nn.relu6}

STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
"""Expansion, channels, blocks and stride of the groups in each tapped stage.

For ImageNet the second group has stride 2.
"""


class Config(NamedTuple):
    """What is the same throughout a network; see `mobilenet_v2`."""

    form: Form
    padding: Literal["SAME"] | None
    epsilon: float


class InvertedResidual(nnx.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 convolutions, with a shortcut."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        expansion: int,
        config: Config,
        *,
        rngs: nnx.Rngs,
    ):
        wide, self.activation = channels_in * expansion, ACTIVATIONS[config.form]
        expands = expansion > 1 or config.form == "cifar"
        norm = partial(BatchNorm, epsilon=config.epsilon, rngs=rngs)
        self.conv1 = conv(channels_in, wide, 1, rngs=rngs) if expands else None
        self.bn1 = norm(wide) if expands else None
        self.conv2 = conv(
            wide, wide, 3, stride, groups=wide, padding=config.padding, rngs=rngs
        )
        self.bn2 = norm(wide)
        self.conv3 = conv(wide, channels, 1, rngs=rngs)
        self.bn3 = norm(channels)
        self.residual = stride == 1 and channels_in == channels

    def __call__(self, x: Array) -> Array:
        """Return the linear bottleneck."""
        y = x
        if self.conv1 is not None and self.bn1 is not None:
            y = self.activation(self.bn1(self.conv1(y)))
        y = self.activation(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    """A stem, inverted residuals, a 1x1 convolution, global pooling and a linear head.

    Taps: ``stage0`` (the stem, with ``stage0.pre`` before its ReLU); ``stage1`` …
    ``stage4``, linear bottlenecks without ReLU, so that ``stage{i}.pre`` is the same;
    ``final``, the last convolution's map after its ReLU, and ``pooled`` (batch, 1280).
    """

    def __init__(
        self,
        width: float,
        classes: int,
        channels_in: int,
        divisor: int | None,
        config: Config,
        *,
        rngs: nnx.Rngs,
    ):
        self.channels_in, self.activation = channels_in, ACTIVATIONS[config.form]
        before = scaled(32, width, divisor)
        self.conv1 = conv(channels_in, before, 3, 2, padding=config.padding, rngs=rngs)
        self.bn1 = BatchNorm(before, config.epsilon, rngs=rngs)
        self.stages = nnx.List()
        for groups in STAGES:
            stage = nnx.List()
            for expansion, channels, blocks, stride in groups:
                after = scaled(channels, width, divisor)
                if config.form == "imagenet" and channels == 24:
                    stride = 2
                for i in range(blocks):
                    first = 1 if i else stride
                    stage.append(
                        InvertedResidual(
                            before, after, first, expansion, config, rngs=rngs
                        )
                    )
                    before = after
            self.stages.append(stage)
        last = scaled(1280, max(width, 1.0), divisor)
        self.conv2 = conv(before, last, 1, rngs=rngs)
        self.bn2 = BatchNorm(last, config.epsilon, rngs=rngs)
        self.fc = nnx.Linear(last, classes, rngs=rngs)
        self.taps = (*stage_taps(1 + len(STAGES)), "final")
        *stages, pooled = stage_cuts(1 + len(STAGES))
        self.cuts = (*stages, "final", pooled)

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps("stage0.pre", self._stem, image)
        x = steps("stage0", self.activation, x)
        for i, blocks in enumerate(self.stages, start=1):
            x = steps(f"stage{i}.pre", _stage, blocks, x)
            x = steps(f"stage{i}", unchanged, x)
        x = steps("final", self._final, x)
        return steps.outputs(self.fc, steps("pooled", pool, x))

    def _stem(self, image: Array) -> Array:
        return self.bn1(self.conv1(check_channels(image, self.channels_in)))

    def _final(self, x: Array) -> Array:
        return self.activation(self.bn2(self.conv2(x)))


def _stage(blocks: Iterable[InvertedResidual], x: Array) -> Array:
    for block in blocks:
        x = block(x)
    return x


@checked(width=positive, divisor=count)
def scaled(channels: int, width: float, divisor: int | None) -> int:
    """Return channels times the width: cut off, or as a multiple of the divisor.

    The multiple is the nearest, at least the divisor, and the next one where the
    nearest has less than 0.9 of the channels.
    """
    if divisor is None:
        return int(channels * width)
    exact = round(channels * width)
    found = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return found + divisor if found < 0.9 * exact else found


@checked(form=own_check, divisor=count, epsilon=positive)
@recorded
def mobilenet_v2(
    width: float = 0.5,
    classes: int = 100,
    *,
    form: Form = "cifar",
    channels_in: int = 3,
    divisor: int | None = None,
    tf_padding: bool = False,
    epsilon: float = 1e-5,
) -> Network:
    """Return MobileNetV2; the CIFAR-100 benchmarks' has half the width.

    Args:
        width: factor on the channels.
        classes: logits.
        form: ``"cifar"`` for images of 32 pixels, or ``"imagenet"`` for 224.
        channels_in: the image's channels.
        divisor: channels are multiples of it, 8 in published weights for ImageNet; None
            to cut off their fractions.
        tf_padding: whether convolutions of stride 2 are padded as in TensorFlow, mostly
            on one side.
        epsilon: of the BatchNorms; Google's weights have 1e-3.

    Raises:
        ValueError: a width that leaves a stage without channels, or another form.
    """
    if form not in ACTIVATIONS:
        raise ValueError(f"form must be 'cifar' or 'imagenet', got {form!r}")
    if divisor is None and int(16 * width) < 1:
        raise ValueError(f"width must be at least 1/16, got {width}")
    config = Config(form, "SAME" if tf_padding else None, epsilon)
    return Network.from_nnx(
        lambda rngs: MobileNetV2(
            width, classes, channels_in, divisor, config, rngs=rngs
        )
    )
