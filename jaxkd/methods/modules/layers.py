"""Layers that projectors are made of; their BatchNorm can leave out padded examples."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxkd.arguments import checked
from jaxkd.losses.pooling import nearest_resize

Mask = Shaped[Array, "batch"] | None


def _identity(x: Array) -> Array:
    return x


@checked()
def zero_padding(x: Array, mask: Mask) -> Array:
    """Replace padded examples, so that a NaN of theirs meets no kernel's gradient."""
    if mask is None:
        return x
    return jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)) > 0, x, 0)


@checked()
class MaskedBatchNorm(nnx.BatchNorm):
    """BatchNorm with PyTorch's constants, over the examples that a mask counts."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        # The fast variance, E[x²] − E[x]², loses all digits where the mean is large.
        super().__init__(
            features, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "batch *space channels"], mask: Mask = None
    ) -> Float[Array, "batch *space channels"]:
        """Normalise by the counted examples' statistics, or by the running ones."""
        if mask is None:
            return super().__call__(x)
        counted = mask > 0
        # The statistics of no example at all would be NaN and stay in the averages.
        counted = counted | ~counted.any()
        counted = counted.reshape(-1, *(1,) * (x.ndim - 1))
        return super().__call__(x, mask=counted)


class ConvNorm(nnx.Module):
    """A convolution without bias (BatchNorm has one), BatchNorm and an activation."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: tuple[int, int] = (1, 1),
        *,
        activation: Callable[[Array], Array] = _identity,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            channels_in, channels_out, kernel_size, use_bias=False, rngs=rngs
        )
        self.norm = MaskedBatchNorm(channels_out, rngs=rngs)
        self.activation = activation

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Mask = None
    ) -> Float[Array, "batch out_height out_width out_channels"]:
        """Return the activated, normalised map."""
        return self.activation(self.norm(self.conv(zero_padding(x, mask)), mask))


class ConvNormChain(nnx.Module):
    """`ConvNorm` layers one after another."""

    def __init__(self, *layers: ConvNorm):
        self.layers = nnx.List(layers)

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Mask = None
    ) -> Float[Array, "batch height width out_channels"]:
        """Return a map of the last one's channels."""
        for layer in self.layers:
            x = layer(x, mask)
        return x


class ABF(nnx.Module):
    """Attention-based fusion of a map with the residual of the next deeper level.

    Chen et al. 2021 (Knowledge Review), arXiv:2104.09044, Section 3.3.

    Args:
        channels_in: the student's channels at this level.
        mid: channels of the residual, the same at all levels.
        channels_out: the teacher's channels at this level.
        fuse: whether there is a deeper level.
    """

    def __init__(
        self,
        channels_in: int,
        mid: int,
        channels_out: int,
        fuse: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.reduce = ConvNorm(channels_in, mid, rngs=rngs)
        self.attention = nnx.Conv(2 * mid, 2, (1, 1), rngs=rngs) if fuse else None
        self.expand = ConvNorm(mid, channels_out, (3, 3), rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        deeper: Float[Array, "batch deep_height deep_width mid"] | None = None,
        size: int | tuple[int, int] | None = None,
        mask: Mask = None,
    ) -> tuple[
        Float[Array, "batch out_height out_width out_channels"],
        Float[Array, "batch out_height out_width mid"],
    ]:
        """Fuse one level.

        Args:
            x: the student's map.
            deeper: the residual of the deeper level; none exactly if ``fuse`` is false.
            size: the teacher's (height, width); None keeps the student's.
            mask: 0 for padded examples.

        Returns:
            The map to compare with the teacher's, and this level's residual.

        Raises:
            ValueError: ``deeper`` is missing or not expected.
        """
        if (deeper is None) == (self.attention is not None):
            raise ValueError(
                f"deeper is {'missing' if deeper is None else 'given'} but this ABF "
                f"has fuse={self.attention is not None}: a chain starts with "
                "fuse=False, and every later level takes the residual before it"
            )
        x = self.reduce(x, mask)
        if deeper is not None and self.attention is not None:
            here = (x.shape[1], x.shape[2])
            deeper = nearest_resize(zero_padding(deeper, mask), here)
            gates = nnx.sigmoid(self.attention(jnp.concatenate([x, deeper], axis=-1)))
            x = x * gates[..., :1] + deeper * gates[..., 1:]
        if size is not None:
            x = nearest_resize(x, size)
        return self.expand(x, mask), x
