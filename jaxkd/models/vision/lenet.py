"""The small network of federated learning's demonstrations: no BatchNorm, few weights.

Clients whose data hold one class would spoil a BatchNorm's averages.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.models.parts.blocks import Image, check_floats
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs


class LeNet(nnx.Module):
    """Two 5x5 convolutions, each with 2x2 max-pooling and ReLU, and two linear layers.

    LeCun et al. 1998's scheme, in the widths of PyTorch's MNIST example. Taps:
    ``stage0`` and ``stage1`` (batch, height, width, channels), and ``pooled`` (batch,
    width), the hidden layer after its ReLU.
    """

    def __init__(
        self,
        size: int,
        channels_in: int,
        channels: Sequence[int],
        width: int,
        classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        first, second = channels
        self.shape = (size, size, channels_in)
        self.convs = nnx.List(
            nnx.Conv(a, b, (5, 5), padding="VALID", rngs=rngs)
            for a, b in ((channels_in, first), (first, second))
        )
        side = ((size - 4) // 2 - 4) // 2
        self.hidden = nnx.Linear(side * side * second, width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)
        self.taps = self.cuts = ("stage0", "stage1", "pooled")

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps(None, self._checked, image)
        for i, conv in enumerate(self.convs):
            x = steps(f"stage{i}", _stage, conv, x)
        return steps.outputs(self.head, steps("pooled", self._pooled, x))

    def _pooled(self, x: Array) -> Array:
        return jax.nn.relu(self.hidden(x.reshape(len(x), -1)))

    def _checked(self, image: Array) -> Array:
        check_floats(image)
        if image.shape[1:] != self.shape:
            raise ValueError(
                f"image has shape {image.shape} (batch, height, width, channels), but "
                f"this LeNet was built for {self.shape}: build it with that size and "
                "channels_in"
            )
        return image


def _stage(conv: nnx.Conv, x: Array) -> Array:
    return jax.nn.relu(nnx.max_pool(conv(x), (2, 2), strides=(2, 2)))


@checked()
@recorded
def lenet(
    size: int = 28,
    channels_in: int = 1,
    channels: Sequence[int] = (10, 20),
    width: int = 50,
    classes: int = 10,
) -> Network:
    """Return a LeNet.

    Args:
        size: the image's height and width; at least 16.
        channels_in: the image's channels.
        channels: of the two convolutions.
        width: of the hidden layer.
        classes: logits.

    Raises:
        ValueError: the images are too small, or not two numbers of channels.
    """
    if size < 16 or len(channels) != 2:
        raise ValueError(
            f"size must be at least 16 and channels two numbers, got {size} and "
            f"{tuple(channels)}"
        )
    return Network.from_nnx(
        lambda rngs: LeNet(size, channels_in, channels, width, classes, rngs=rngs)
    )
