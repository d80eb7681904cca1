"""The networks of the digits: residual perceptrons, dense or with mixtures of experts.

They are written as a user's own would be: what ``steps`` names can be tapped and cut.
"""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array

from jaxkd import Network, models
from jaxkd.adapters import Steps
from jaxkd.models.parts.moe import Mixture, MoE
from jaxkd.models.parts.tokens import MLP, layer_norm
from jaxkd.types import Outputs

Build = Callable[[int], Network]
"""``classes -> network``."""


class Block(nnx.Module):
    """What an MLP, or a mixture of them, adds to the normalised input."""

    def __init__(self, width: int, experts: int, *, rngs: nnx.Rngs):
        self.norm = layer_norm(width, rngs=rngs)
        self.mlp = (
            MoE(width, Mixture(2 * width, experts, 2), rngs=rngs)
            if experts
            else MLP(width, 2 * width, rngs=rngs)
        )

    def __call__(self, x: Array) -> Array:
        """Return the sum."""
        return x + self.mlp(self.norm(x))


class ResidualMLP(nnx.Module):
    """Blocks between a linear layer of the pixels and a linear head."""

    def __init__(
        self,
        width: int,
        blocks: int,
        classes: int,
        experts: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.embed = nnx.Linear(features, width, rngs=rngs)
        self.blocks = nnx.List(Block(width, experts, rngs=rngs) for _ in range(blocks))
        self.norm = layer_norm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)
        self.cuts = self.taps = tuple(f"block{i}" for i in range(blocks))

    def __call__(self, image: Array | None, *, steps: Steps | None = None) -> Outputs:
        """Return the logits."""
        steps = steps or Steps()
        x = steps(None, self._embed, image)
        for name, block in zip(self.cuts, self.blocks, strict=True):
            x = steps(name, block, x)
        return steps.outputs(lambda x: self.head(self.norm(x)), x)

    def _embed(self, image: Array) -> Array:
        return self.embed(image.reshape(len(image), -1))


def residual_mlp(
    classes: int, *, width: int, blocks: int, experts: int = 0, features: int = 64
) -> Network:
    """Return a residual perceptron, whose routers are tapped.

    Args:
        classes: logits.
        width: of the blocks.
        blocks: how many.
        experts: of each block's mixture; 0 for an MLP.
        features: of an image.
    """
    taps = {f"block{i}.router": f"blocks.{i}.mlp.router" for i in range(blocks)}
    return Network.from_nnx(
        lambda rngs: ResidualMLP(width, blocks, classes, experts, features, rngs=rngs),
        taps=taps if experts else None,
    )


def digits_networks(modules: int) -> tuple[Build, Build, Build]:
    """Return meta model, teacher and student of the digits, of so many modules."""
    return (
        partial(residual_mlp, width=48, blocks=modules),
        partial(residual_mlp, width=48, blocks=2 * modules),
        partial(residual_mlp, width=32, blocks=modules, experts=4),
    )


def imagenet_networks(modules: int) -> tuple[Build, Build, Build]:
    """Return the paper's: of ViT-L's width, ViT-L, and V-MoE-Base."""
    return (
        partial(models.vit, (1024, modules, 16)),
        partial(models.vit, (1024, 24, 16)),
        partial(models.vmoe, "base"),
    )


def loads(network: Network, images: Array, taps: tuple[str, ...]):
    """Return ``variables -> routers' logits`` of some images, by tap."""

    @jax.jit
    def run(variables):
        return network.apply(variables, images, taps=taps)[0].features

    return run
