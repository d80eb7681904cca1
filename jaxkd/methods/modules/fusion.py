"""A small network that decides how much a student listens to its teacher."""

from collections.abc import Sequence
from itertools import pairwise

import jax
from flax import nnx
from jaxtyping import Array, Float


class FusionController(nnx.Module):
    """A perceptron from an example's features to a ratio α in (0, 1).

    Hu et al. 2024, arXiv:2312.15112: hidden layers with LeakyReLU 0.01, and a sigmoid.

    Args:
        features: of an example, from `jaxkd.losses.fusion.trilateral_features`.
        hidden: the hidden layers' sizes.
    """

    def __init__(
        self, features: int, hidden: Sequence[int] = (32, 16), *, rngs: nnx.Rngs
    ):
        self.layers = nnx.List(
            nnx.Linear(a, b, rngs=rngs) for a, b in pairwise([features, *hidden])
        )
        self.out = nnx.Linear([features, *hidden][-1], 1, rngs=rngs)

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch"]:
        """Return α of each example."""
        for layer in self.layers:
            x = nnx.leaky_relu(layer(x), negative_slope=0.01)
        return jax.nn.sigmoid(self.out(x)[:, 0])
