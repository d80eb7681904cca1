"""All-MLP vision models: MLP-Mixer and ResMLP.

Tolstikhin et al. 2021 (arXiv:2105.01601) and Touvron et al. 2021 (arXiv:2105.03404).
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps, Tap, unchanged
from jaxkd.arguments import checked
from jaxkd.models.parts.blocks import Image
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.parts.tokens import MLP, PatchEmbed, layer_norm, linear, named_size
from jaxkd.network import Network
from jaxkd.types import Outputs

Tokens = Float[Array, "batch tokens width"]


class MixerBlock(nnx.Module):
    """An MLP over tokens and an MLP over channels, each after a layer norm."""

    def __init__(
        self,
        tokens: int,
        width: int,
        token_hidden: int,
        channel_hidden: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = layer_norm(width, rngs=rngs)
        self.mix_tokens = MLP(tokens, token_hidden, rngs=rngs)
        self.norm2 = layer_norm(width, rngs=rngs)
        self.mix_channels = MLP(width, channel_hidden, rngs=rngs)

    def __call__(self, x: Tokens, tap: Tap = unchanged) -> Tokens:
        """Return the block's output; ``tap`` gets what the token MLP adds."""
        mixed = self.mix_tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
        x = x + tap(mixed)
        return x + self.mix_channels(self.norm2(x))


class Affine(nnx.Module):
    """A scale and a shift a channel, ResMLP's replacement of normalisation."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.shift = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Tokens) -> Tokens:
        """Return scale · x + shift."""
        return self.scale[...] * x + self.shift[...]


class ResMLPBlock(nnx.Module):
    """A linear layer over tokens and an MLP over channels, scaled before adding.

    The scales (LayerScale, Touvron et al. 2021, arXiv:2103.17239) start at ``scale``,
    smaller in deeper networks.
    """

    def __init__(self, tokens: int, width: int, scale: float, *, rngs: nnx.Rngs):
        self.affine1, self.affine2 = Affine(width), Affine(width)
        self.mix_tokens = linear(tokens, tokens, rngs=rngs)
        self.mix_channels = MLP(width, 4 * width, rngs=rngs)
        self.scale1 = nnx.Param(jnp.full(width, scale, jnp.float32))
        self.scale2 = nnx.Param(jnp.full(width, scale, jnp.float32))

    def __call__(self, x: Tokens, tap: Tap = unchanged) -> Tokens:
        """Return the block's output; ``tap`` gets the mixed tokens before adding."""
        mixed = self.mix_tokens(self.affine1(x).swapaxes(1, 2)).swapaxes(1, 2)
        x = x + tap(self.scale1[...] * mixed)
        return x + self.scale2[...] * self.mix_channels(self.affine2(x))


class MLPNetwork(nnx.Module):
    """Patches through blocks to a normalised mean over tokens and a linear head.

    Taps: ``embed``, ``block0`` … and ``final`` (after the last norm), (batch, tokens,
    width); ``block{i}.mix``, what the block's token mixing adds; ``pooled`` (batch,
    width).
    """

    def __init__(
        self,
        patches: PatchEmbed,
        blocks: list[nnx.Module],
        norm: nnx.Module,
        width: int,
        classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.patches = patches
        self.blocks = nnx.List(blocks)
        self.norm = norm
        self.head = linear(width, classes, axes=("embed", "vocabulary"), rngs=rngs)
        names = [f"block{i}" for i in range(len(blocks))]
        mixed = (f"{name}.mix" for name in names)
        self.taps = ("embed", *names, *mixed, "final", "pooled")
        self.cuts = ("embed", *names, "final", "pooled")

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps("embed", self.patches, image)
        for i, block in enumerate(self.blocks):
            x = steps(f"block{i}", block, x, partial(steps.tap, f"block{i}.mix"))
        x = steps("final", self.norm, x)
        return steps.outputs(self.head, steps("pooled", lambda x: x.mean(1), x))


MIXER_SIZES = {"small": (512, 8, 256, 2048), "base": (768, 12, 384, 3072)}
"""Width, blocks, and hidden sizes over tokens and channels (Tolstikhin, Table 1)."""

RESMLP_SIZES = {"s12": (384, 12), "s24": (384, 24)}
"""Width and blocks (Touvron)."""


@checked()
@recorded
def mlp_mixer(
    size: str | Sequence[int] = "small",
    classes: int = 1000,
    *,
    image_size: int = 224,
    patch_size: int = 16,
    channels_in: int = 3,
) -> Network:
    """Return an MLP-Mixer.

    Args:
        size: ``"small"``, ``"base"``, or (width, blocks, hidden size over tokens,
            hidden size over channels).
        classes: logits.
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        channels_in: the image's channels.

    Raises:
        ValueError: an unknown size, or patches that do not tile the image.
    """
    width, depth, over_tokens, over_channels = named_size(size, MIXER_SIZES, "Mixer")

    def build(rngs: nnx.Rngs) -> MLPNetwork:
        patches = PatchEmbed(image_size, patch_size, channels_in, width, rngs=rngs)
        return MLPNetwork(
            patches,
            [
                MixerBlock(patches.tokens, width, over_tokens, over_channels, rngs=rngs)
                for _ in range(depth)
            ],
            layer_norm(width, rngs=rngs),
            width,
            classes,
            rngs=rngs,
        )

    return Network.from_nnx(build)


@checked()
@recorded
def resmlp(
    size: str | Sequence[int] = "s12",
    classes: int = 1000,
    *,
    image_size: int = 224,
    patch_size: int = 16,
    channels_in: int = 3,
) -> Network:
    """Return a ResMLP.

    Args:
        size: ``"s12"``, ``"s24"``, or (width, blocks).
        classes: logits.
        image_size: pixels of the square image's side.
        patch_size: pixels of a patch's side.
        channels_in: the image's channels.

    Raises:
        ValueError: an unknown size, or patches that do not tile the image.
    """
    width, depth = named_size(size, RESMLP_SIZES, "ResMLP")
    scale = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6

    def build(rngs: nnx.Rngs) -> MLPNetwork:
        patches = PatchEmbed(image_size, patch_size, channels_in, width, rngs=rngs)
        return MLPNetwork(
            patches,
            [
                ResMLPBlock(patches.tokens, width, scale, rngs=rngs)
                for _ in range(depth)
            ],
            Affine(width),
            width,
            classes,
            rngs=rngs,
        )

    return Network.from_nnx(build)
