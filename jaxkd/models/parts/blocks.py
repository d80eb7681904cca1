"""Layers that the zoo's image models share, with the field's padding and constants."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.types import Outputs


class BatchNorm(nnx.BatchNorm):
    """BatchNorm with PyTorch's constants that answers in its input's dtype.

    Statistics and running averages are float32 whatever comes in; Flax's own would
    answer in the averages' dtype, and a bf16 network would go on in float32.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        super().__init__(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return the normalised input."""
        return super().__call__(x).astype(x.dtype)


def conv(
    channels_in: int,
    channels: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    *,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Return a convolution padded by kernel // 2 on every side.

    XLA's "SAME" pads a strided convolution on one side only, and published weights
    would not carry over. Weights start as He et al. 2015 (arXiv:1502.01852) say, normal
    with variance 2 / fan-out.
    """
    return nnx.Conv(
        channels_in,
        channels,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


class Features:
    """The features of a forward pass through stages, collected in order."""

    def __init__(self):
        self.found: dict[str, Array] = {}

    def stage(self, before_relu: Array) -> Array:
        """Note the next stage's map, before and after its ReLU; return the latter."""
        name = f"stage{len(self.found) // 2}"
        self.found[f"{name}.pre"] = before_relu
        self.found[name] = jax.nn.relu(before_relu)
        return self.found[name]

    def stages(self, x: Array, layers: Iterable[Sequence[Any]]) -> Array:
        """Run stages of blocks that end before their ReLU; return the last map."""
        for layer in layers:
            *blocks, last = layer
            for block in blocks:
                x = jax.nn.relu(block(x))
            x = self.stage(last(x))
        return x

    def outputs(self, head: nnx.Linear) -> Outputs:
        """Pool the last stage's map and classify it."""
        (*_, last) = self.found.values()
        pooled = last.mean((1, 2))
        return Outputs(head(pooled), {**self.found, "pooled": pooled})


def stage_taps(stages: int) -> tuple[str, ...]:
    """Return the taps of a network with that many stages, the stem among them."""
    names = [f"stage{i}" for i in range(stages)]
    return (*names, *(f"{name}.pre" for name in names), "pooled")


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


def check_channels(image: Array, channels_in: int) -> None:
    """Refuse an image that is not floats (batch, height, width, ``channels_in``).

    Raises:
        ValueError: it names the dtype or shape, and what the model was built for.
    """
    check_floats(image)
    if image.ndim != 4 or image.shape[-1] != channels_in:
        raise ValueError(
            f"image has shape {image.shape}, but this model takes (batch, height, "
            f"width, {channels_in}): build it with another channels_in, or reshape"
        )
