"""Exit branches: heads that turn a student's intermediate features into logits.

Hao et al. 2023 (One-for-All), arXiv:2310.19444: features of convolutional
networks, transformers and perceptrons differ, logits do not, so each stage of a student
gets a branch that ends in logits. They are trained with the student and thrown away
after. A branch takes ``x`` and a ``mask`` (batch,), 0 for padded examples, which then
have no influence on the others.
"""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.methods.modules.layers import Mask, MaskedBatchNorm, zero_padding
from jaxkd.models.parts.blocks import conv
from jaxkd.models.parts.tokens import linear
from jaxkd.models.vision.swin import PatchMerging
from jaxkd.models.vision.vit import Block

FINAL_GRID = 7
"""Tokens a side to which a branch merges those of an image of 224 pixels."""

HEADS = 4
"""Attention heads of a branch's transformer blocks."""


class SepConv(nnx.Module):
    """Two separable 3x3 convolutions with BatchNorm and ReLU; the first halves the map.

    Args:
        channels_in: of the map.
        channels: of the result.
    """

    def __init__(self, channels_in: int, channels: int, *, rngs: nnx.Rngs):
        def depthwise(stride: int) -> nnx.Conv:
            return conv(channels_in, channels_in, 3, stride, channels_in, rngs=rngs)

        self.depthwise1 = depthwise(2)
        self.pointwise1 = conv(channels_in, channels_in, 1, rngs=rngs)
        self.norm1 = MaskedBatchNorm(channels_in, rngs=rngs)
        self.depthwise2 = depthwise(1)
        self.pointwise2 = conv(channels_in, channels, 1, rngs=rngs)
        self.norm2 = MaskedBatchNorm(channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Mask = None
    ) -> Float[Array, "batch half_height half_width out_channels"]:
        """Return a map of half the size."""
        x = nnx.relu(self.norm1(self.pointwise1(self.depthwise1(x)), mask))
        return nnx.relu(self.norm2(self.pointwise2(self.depthwise2(x)), mask))


class CnnExitBranch(nnx.Module):
    """A `SepConv` for each stage that follows, global pooling and a linear layer.

    Channels double with each but the last. Where no stage follows, a 1x1 convolution
    takes the place of the separable ones.

    Args:
        channels: of the student's map.
        classes: logits.
        width: channels before the pooling.
        stages_after: how many stages of the student follow.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int,
        stages_after: int,
        *,
        rngs: nnx.Rngs,
    ):
        doubled = [channels * 2**i for i in range(stages_after)]
        self.down = nnx.List(
            SepConv(a, b, rngs=rngs)
            for a, b in zip(doubled, [*doubled[1:], width], strict=bool(stages_after))
        )
        self.widen = (
            None if stages_after else conv(channels, width, 1, bias=True, rngs=rngs)
        )
        self.head = linear(width, classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Mask = None
    ) -> Float[Array, "batch classes"]:
        """Return the logits."""
        x = zero_padding(x, mask)
        for layer in self.down:
            x = layer(x, mask)
        if self.widen is not None:
            x = self.widen(x)
        return self.head(x.mean((1, 2)))


class TokenExitBranch(nnx.Module):
    """Patch merging to a 7x7 grid, transformer blocks, pooling and a linear layer.

    Class tokens pass by the merging and are read at the end; without them the tokens'
    mean is. GELU follows each merging but the last of several.

    Args:
        shape: of the student's tokens, (batch, tokens, features); tokens beyond the
            largest square number come first and are class tokens.
        classes: logits.
        width: of the blocks: the student's at its end.
        stages_after: how many stages of the student follow; one block for each, and
            one where none follows.

    Raises:
        ValueError: a grid that cannot be halved, a width that four heads do not
            divide, or features that nothing brings to that width.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        width: int,
        stages_after: int,
        *,
        rngs: nnx.Rngs,
    ):
        _, tokens, features = shape
        side = math.isqrt(tokens)
        self.class_tokens = tokens - side**2
        mergers = max(int(math.log2(side / FINAL_GRID)), 0)
        if width % HEADS:
            raise ValueError(
                f"width must be a multiple of the {HEADS} attention heads, got {width}"
            )
        if features != width and (not mergers or self.class_tokens):
            raise ValueError(
                f"tokens of shape {shape} have {features} features but width is "
                f"{width}: class tokens, and grids below {2 * FINAL_GRID} a side, are "
                "not projected, so give their number of features as width"
            )
        self.mergers = nnx.List(
            PatchMerging(width if i else features, width, rngs=rngs)
            for i in range(mergers)
        )
        self.blocks = nnx.List(
            Block(width, HEADS, 0.0, rngs=rngs) for _ in range(max(stages_after, 1))
        )
        self.head = linear(width, classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens features"], mask: Mask = None
    ) -> Float[Array, "batch classes"]:
        """Return the logits."""
        x = zero_padding(x, mask)
        first, x = x[:, : self.class_tokens], x[:, self.class_tokens :]
        for i, merge in enumerate(self.mergers):
            x = merge(x)
            if i == 0 or i < len(self.mergers) - 1:
                x = jax.nn.gelu(x, approximate=False)
        if self.class_tokens:
            x = jnp.concatenate([first, x], axis=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0] if self.class_tokens else x.mean(1))


class VectorExitBranch(nnx.Module):
    """Linear, ReLU, linear: the branch of a multilayer perceptron's hidden layer.

    The paper has no student whose stages are vectors.

    Args:
        features: of the student's layer.
        classes: logits.
        width: of the branch's own hidden layer.
    """

    def __init__(self, features: int, classes: int, width: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(features, width, rngs=rngs)
        self.head = linear(width, classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch features"], mask: Mask = None
    ) -> Float[Array, "batch classes"]:
        """Return the logits."""
        return self.head(nnx.relu(self.hidden(zero_padding(x, mask))))


@checked()
def exit_branch(
    shape: tuple[int, ...],
    classes: int,
    width: int,
    stages_after: int,
    *,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Return the branch for features of that shape.

    Args:
        shape: (batch, height, width, channels) of a map, (batch, tokens, features) of
            tokens, or (batch, features).
        classes: logits.
        width: of the branch.
        stages_after: how many stages of the student follow.
        rngs: give the first weights.

    Raises:
        ValueError: features of another rank, or that the branch cannot take.
    """
    if len(shape) == 4:
        return CnnExitBranch(shape[-1], classes, width, stages_after, rngs=rngs)
    if len(shape) == 3:
        return TokenExitBranch(shape, classes, width, stages_after, rngs=rngs)
    if len(shape) == 2:
        return VectorExitBranch(shape[-1], classes, width, rngs=rngs)
    raise ValueError(
        f"features have shape {shape}, but an exit branch takes maps (batch, height, "
        "width, channels), tokens (batch, tokens, features) or vectors (batch, "
        "features): tap another layer"
    )


@checked()
def split_stages(blocks: int, shares: tuple[int, ...] = (1, 1, 3, 1)) -> list[range]:
    """Return the blocks of each stage of a network without stages of its own.

    By default a third stage of three times the others', as in Swin-T: the authors read
    a transformer of 12 blocks after blocks 1, 3, 9 and 11.

    Args:
        blocks: how many the network has.
        shares: the stages' relative lengths; (1, 1, 1, 1) for equal ones.

    Raises:
        ValueError: fewer blocks than stages.
    """
    if blocks < len(shares):
        raise ValueError(
            f"blocks must be at least {len(shares)}, one a stage, got {blocks}"
        )
    stages, total = len(shares), sum(shares)
    ends = [0]
    for i in range(1, stages + 1):
        end = round(blocks * sum(shares[:i]) / total)
        ends.append(min(max(end, ends[-1] + 1), blocks - stages + i))
    return [range(a, b) for a, b in pairwise(ends)]
