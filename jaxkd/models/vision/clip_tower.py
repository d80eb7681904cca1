"""What the towers of CLIP and SigLIP share: blocks, a norm, and unit embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps, Tap
from jaxkd.arguments import checked, positive
from jaxkd.models.language.self_attention import SelfAttention
from jaxkd.models.language.sequence import Sequence
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.stack import block_taps, run_stack, stacked
from jaxkd.models.parts.tokens import layer_norm
from jaxkd.sharding.axes import constrain

normal = nnx.initializers.normal

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}
"""Of the MLPs: OpenAI's, the exact one, and the one of SigLIP."""


@checked(epsilon=positive)
@dataclass(frozen=True)
class Config:
    """What both towers know.

    Attributes:
        width: features of a token.
        layers: transformer blocks.
        heads: of the attention.
        hidden: width of the MLPs.
        causal: whether tokens see none after them.
        activation: of the MLPs.
        epsilon: of the norms.
        scan: whether the blocks are one compiled loop; else they are unrolled.
        remat: whether a block's activations are computed anew in the backward pass.
        implementation: of the attention; see `jaxkd.kernels`.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    causal: bool
    activation: Activation
    epsilon: float
    scan: bool
    remat: bool
    implementation: str

    def norm(self, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
        """Return a layer norm of the residual stream."""
        return layer_norm(self.width, self.epsilon, rngs=rngs)


class MLP(nnx.Module):
    """Linear, activation, linear."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        into, back = ("embed", "hidden"), ("hidden", "embed")
        self.activation = ACTIVATIONS[config.activation]
        start = normal((2 * width) ** -0.5)
        end = normal((2 * config.layers * width) ** -0.5)
        self.fc1 = Linear(width, hidden, axes=into, kernel_init=start, rngs=rngs)
        self.fc2 = Linear(hidden, width, axes=back, kernel_init=end, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length width"]:
        """Return as many features."""
        x = constrain(self.fc1(x), "batch", None, "hidden")
        return self.fc2(self.activation(x))


class Block(nnx.Module):
    """Attention and an MLP, each normalised before and added after."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, layers = config.width, config.layers
        scales = width**-0.5, (2 * layers * width) ** -0.5
        self.norm1 = config.norm(rngs=rngs)
        self.attention = SelfAttention(
            width,
            config.heads,
            config.causal,
            scales,
            config.implementation,
            rngs=rngs,
        )
        self.norm2 = config.norm(rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], tokens: Sequence, tap: Tap
    ) -> Float[Array, "batch length width"]:
        """Return the block's output; ``tap`` gets what the attention adds."""
        attended, _ = self.attention(self.norm1(x), tokens)
        x = x + tap(attended)
        return x + self.mlp(self.norm2(x))


class Tower(nnx.Module):
    """Blocks, a norm, and what brings a row's features to the shared embedding.

    Args:
        config: of the tower.
        embedder: ``features -> embedding``, such as a linear layer.
        rngs: of the blocks.

    Attributes:
        tap_prefix: of the tower's taps.
    """

    tap_prefix = ""

    def __init__(
        self,
        config: Config,
        embedder: Callable[[nnx.Rngs], Callable[[Array], Array]],
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.blocks = stacked(
            lambda rngs: Block(config, rngs=rngs), config.layers, rngs=rngs
        )
        self.norm = config.norm(rngs=rngs)
        self.embedder = embedder(rngs)
        blocks = block_taps(config.layers, "", ".attn")
        own = ("embed", *blocks, "final", "pooled", "projected")
        self.taps = tuple(f"{self.tap_prefix}{tap}" for tap in own)

    def __call__(
        self, inputs: Mapping[str, Any], steps: Steps
    ) -> Float[Array, "batch features"]:
        """Return the embeddings of a tower's own inputs, of length 1."""
        raise NotImplementedError

    def encoded(
        self, x: Float[Array, "batch length width"], tokens: Sequence, steps: Steps
    ) -> Float[Array, "batch length width"]:
        """Return the tokens' features after the last norm.

        Args:
            x: embeddings of the tokens.
            tokens: what is known of them.
            steps: of the forward pass.
        """
        config, name = self.config, self.tap_prefix

        def run(block: Block, x: Array, _: Any, number: Array, tap: Callable):
            x = constrain(x, "batch", "length", None)
            return block(x, tokens, partial(tap, ".attn")), None

        x = steps.tap(f"{name}embed", x)
        x, _ = run_stack(
            self.blocks,
            run,
            x,
            None,
            steps,
            scan=config.scan,
            remat=config.remat,
            prefix=name,
        )
        return steps.tap(f"{name}final", self.norm(x))

    def embedding(
        self, pooled: Float[Array, "batch width"], steps: Steps
    ) -> Float[Array, "batch features"]:
        """Return the embeddings, of length 1.

        Args:
            pooled: features that stand for a row.
            steps: of the forward pass.
        """
        name = self.tap_prefix
        projected = self.embedder(steps.tap(f"{name}pooled", pooled))
        return _unit(steps.tap(f"{name}projected", projected))


@checked()
def projection(
    width: int, features: int, *, bias: bool = False, rngs: nnx.Rngs
) -> Linear:
    """Return the linear layer to the embedding that towers share."""
    return Linear(
        width,
        features,
        axes=("embed", None),
        use_bias=bias,
        kernel_init=normal(width**-0.5),
        rngs=rngs,
    )


def _unit(x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
    """Return vectors of length 1."""
    square = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return (x * jax.lax.rsqrt(square.sum(-1, keepdims=True))).astype(x.dtype)
