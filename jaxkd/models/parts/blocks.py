"""Layers that the zoo's image models share, with the field's padding and constants."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, natural


@checked()
class BatchNorm(nnx.BatchNorm):
    """BatchNorm with PyTorch's constants that answers in its input's dtype.

    Statistics and running averages are float32 whatever comes in; Flax's own would
    answer in the averages' dtype, and a bf16 network would go on in float32.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs):
        super().__init__(channels, momentum=0.9, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return the normalised input."""
        return super().__call__(x).astype(x.dtype)


@checked()
def conv(
    channels_in: int,
    channels: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    padding: int | Literal["SAME"] | None = None,
    *,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Return a convolution padded by kernel // 2 on every side, if not otherwise.

    XLA's "SAME", which is TensorFlow's, pads a strided convolution on one side only,
    and weights published for PyTorch would not carry over. Weights start as He et al.
    2015 (arXiv:1502.01852) say, normal with variance 2 / fan-out.
    """
    return nnx.Conv(
        channels_in,
        channels,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2 if padding is None else padding,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


Image = Float[Array, "batch height width channels"] | None
"""What image models take; None where a segment starts later."""


@checked(number=natural)
def take_stage(
    steps: Steps, number: int, before_relu: Callable[..., Array], *args: Any
) -> Array:
    """Take the steps to a stage's map, before and after its ReLU; return the latter.

    Args:
        steps: of the forward pass.
        number: of the stage, 0 for the stem.
        before_relu: computes the map up to its ReLU.
        *args: of it.
    """
    x = steps(f"stage{number}.pre", before_relu, *args)
    return steps(f"stage{number}", jax.nn.relu, x)


@checked()
def run_blocks(blocks: Iterable[Any], x: Array) -> Array:
    """Run blocks that end before their ReLU; return the map before the last one's."""
    *others, last = blocks
    for block in others:
        x = jax.nn.relu(block(x))
    return last(x)


def pool(x: Float[Array, "batch height width channels"]) -> Array:
    """Return the mean over the positions."""
    return x.mean((1, 2))


@checked()
def stage_taps(stages: int) -> tuple[str, ...]:
    """Return the taps of a network with that many stages, the stem among them."""
    names = [f"stage{i}" for i in range(stages)]
    return (*names, *(f"{name}.pre" for name in names), "pooled")


@checked()
def stage_cuts(stages: int) -> tuple[str, ...]:
    """Return the same in the order of the forward pass."""
    names = (f"stage{i}{end}" for i in range(stages) for end in (".pre", ""))
    return (*names, "pooled")


def check_floats(image: Array) -> None:
    """Refuse pixels as they are in files, 0 … 255.

    Raises:
        ValueError: it names the dtype, and how images are normalised.
    """
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"image is {image.dtype}, but this model takes floats: pass data.batches a "
            "transform that ends in data.Normalize(mean, std)"
        )


@checked()
def check_channels(image: Array, channels_in: int) -> Array:
    """Return an image of floats (batch, height, width, ``channels_in``), no other.

    Raises:
        ValueError: it names the dtype or shape, and what the model was built for.
    """
    check_floats(image)
    if image.ndim != 4 or image.shape[-1] != channels_in:
        raise ValueError(
            f"image has shape {image.shape}, but this model takes (batch, height, "
            f"width, {channels_in}): build it with another channels_in, or reshape"
        )
    return image
