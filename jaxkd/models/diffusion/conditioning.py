"""What diffusion models are told beside the noisy image: the time and a class.

Their inputs are a dict: ``image`` (batch, height, width, channels), ``time`` (batch,)
in [0, 1] and, for models with classes, ``condition`` (batch,), class indices of which
the one past the last means "no class".
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import as_float
from jaxkd.models.parts.linear import Linear
from jaxkd.sharding.axes import constrain_batch

INPUTS = ("image", "time", "condition")


@checked()
def sinusoidal(time: Float[Array, "batch"], width: int) -> Float[Array, "batch width"]:
    """Return sines and cosines of a time in [0, 1], as of 1,000 diffusion steps.

    Vaswani et al. 2017 (arXiv:1706.03762), Section 3.5, applied to time by Ho et al.
    2020 (arXiv:2006.11239).

    Args:
        time: one an example.
        width: of the result, even.
    """
    half = width // 2
    frequency = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angle = 1000 * as_float(time)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class Conditioning(nnx.Module):
    """Embeds time and class into one vector that the blocks read.

    Args:
        frequencies: sines and cosines of the time.
        width: of the vector.
        classes: that images belong to; 0 for a model without.
    """

    def __init__(self, frequencies: int, width: int, classes: int, *, rngs: nnx.Rngs):
        self.frequencies, self.classes = frequencies, classes
        self.fc1 = Linear(frequencies, width, axes=("embed", "hidden"), rngs=rngs)
        self.fc2 = Linear(width, width, axes=("hidden", "embed"), rngs=rngs)
        # One more than there are classes, for "no class".
        self.classes_embedding = (
            nnx.Embed(classes + 1, width, rngs=rngs) if classes else None
        )

    def __call__(
        self,
        time: Float[Array, "batch"],
        condition: Int[Array, "batch"] | None,
        dtype: jnp.dtype,
    ) -> Float[Array, "batch width"]:
        """Return the vector in a dtype; the time's waves are made in float32.

        Raises:
            ValueError: a condition is missing, or given to a model without classes.
        """
        if (condition is None) == (self.classes > 0):
            given = "is missing" if condition is None else "was given"
            raise ValueError(
                f"condition {given}, but the model was built with classes="
                f"{self.classes}: pass the class of each image where there are classes "
                f"(index {self.classes} for none), and nothing where there are not"
            )
        waves = sinusoidal(time, self.frequencies).astype(dtype)
        x = self.fc2(jax.nn.silu(self.fc1(waves)))
        if self.classes_embedding is not None and condition is not None:
            x = x + self.classes_embedding(condition).astype(dtype)
        # The class's part comes from where the table's features lie.
        return constrain_batch(x)


@checked()
def unpack(
    inputs: Mapping[str, Array], shape: tuple[int, int, int]
) -> tuple[Array, Array, Array | None]:
    """Return image, time and condition (or None) of a diffusion model's inputs.

    Args:
        inputs: the dict.
        shape: that the image must have, without the batch.

    Raises:
        ValueError: something is missing, unknown, or of another shape.
    """
    if not isinstance(inputs, Mapping) or not {"image", "time"} <= set(inputs):
        given = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise ValueError(
            f"a diffusion model's inputs are a dict of {', '.join(INPUTS)} (the last "
            f"for models with classes), got {given}"
        )
    for name in inputs:
        if name not in INPUTS:
            raise ValueError(unknown_name("input", name, INPUTS))
    image, time = inputs["image"], inputs["time"]
    if image.shape[1:] != shape:
        raise ValueError(
            f"image has shape {image.shape}, but this model takes (batch, "
            f"{', '.join(map(str, shape))}): resize it, or build the model with its "
            "image_size and channels_in"
        )
    if time.shape != image.shape[:1]:
        raise ValueError(
            f"time has shape {time.shape}, but there are {len(image)} images: give one "
            "time an image"
        )
    return image, time, inputs.get("condition")
