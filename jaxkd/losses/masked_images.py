"""Masked image modelling: most patches of an image are hidden, and are to be painted.

A masked autoencoder (He et al. 2021, arXiv:2111.06377) sees a few patches and predicts
the pixels of the others. Patches are numbered row by row; tokens are a class token and
one a patch.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count, fraction, natural, positive
from jaxkd.losses.basics import as_float, check_same_shape, frozen, weighted_loss

EPS = 1e-6
"""Added to a patch's variance, as in the authors' code."""


class Masking(NamedTuple):
    """Which patches of each image are seen, and which are hidden.

    Attributes:
        ids_keep: numbers of those that are seen, (batch, visible).
        ids_restore: where each patch's token stands after those of the visible patches
            and then those of the hidden ones, (batch, patches).
        hidden: 1 where a patch is hidden, 0 where it is seen, (batch, patches).
    """

    ids_keep: Array
    ids_restore: Array
    hidden: Array


@checked(mask_ratio=fraction)
def random_masking(noise: Float[Array, "batch patches"], mask_ratio: float) -> Masking:
    """Return the patches of lowest noise as the visible ones.

    He et al. 2021, arXiv:2111.06377. Of L patches int(L·(1 − ratio)) are seen, in
    floating point as the authors' code has it.

    Args:
        noise: uniform, one number a patch.
        mask_ratio: share in [0, 1) of patches that are hidden.

    Raises:
        ValueError: a ratio that hides all patches.
    """
    patches = noise.shape[1]
    visible = int(patches * (1 - mask_ratio))
    if visible < 1:
        raise ValueError(
            f"mask_ratio {mask_ratio} hides all of {patches} patches: lower it so that "
            "at least one is seen"
        )
    order = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(order, axis=1)
    return Masking(order[:, :visible], restore, (restore >= visible).astype(float))


@checked(patch_size=count)
def patchify(
    image: Float[Array, "batch height width channels"], patch_size: int
) -> Float[Array, "batch patches values"]:
    """Return an image's patches, each as its values by row, column and channel.

    Args:
        image: to cut.
        patch_size: pixels of a patch's side.

    Raises:
        ValueError: patches that do not tile the image.
    """
    if image.shape[1] % patch_size or image.shape[2] % patch_size:
        raise ValueError(
            f"patch_size {patch_size} does not tile images of shape {image.shape[1:]}: "
            "choose a divisor of height and width, or resize the images"
        )
    return rearrange(
        image, "b (i y) (j x) c -> b (i j) (y x c)", y=patch_size, x=patch_size
    )


@checked(patch_size=count)
def unpatchify(
    patches: Float[Array, "batch patches values"], patch_size: int
) -> Float[Array, "batch side side channels"]:
    """Return the square image that `patchify` has cut.

    Args:
        patches: a square number of them.
        patch_size: pixels of a patch's side.

    Raises:
        ValueError: another number of patches, or values of no whole channels.
    """
    side = round(patches.shape[1] ** 0.5)
    if side**2 != patches.shape[1] or patches.shape[2] % patch_size**2:
        raise ValueError(
            f"patches has shape {patches.shape}: it must hold a square number of "
            f"patches, each of {patch_size}·{patch_size}·channels values"
        )
    return rearrange(
        patches,
        "b (i j) (y x c) -> b (i y) (j x) c",
        i=side,
        y=patch_size,
        x=patch_size,
    )


@checked(prefix=natural)
def visible_tokens(
    tokens: Float[Array, "batch tokens width"],
    ids_keep: Int[Array, "batch visible"],
    prefix: int = 1,
) -> Float[Array, "batch kept width"]:
    """Return the tokens before the patches' and those of the visible patches.

    Args:
        tokens: of all patches.
        ids_keep: numbers of the visible patches.
        prefix: tokens before those of the patches, such as a class token.
    """
    seen = jnp.take_along_axis(tokens[:, prefix:], ids_keep[..., None], axis=1)
    return jnp.concatenate([tokens[:, :prefix], seen], axis=1)


def restore_tokens(
    visible: Float[Array, "batch kept width"],
    mask_token: Float[Array, "width"],
    ids_restore: Int[Array, "batch patches"],
) -> Float[Array, "batch tokens width"]:
    """Return a token for every patch in its place, the class token before them.

    Args:
        visible: the class token and those of the visible patches.
        mask_token: what stands for a hidden patch.
        ids_restore: of `Masking`.
    """
    batch, kept, width = visible.shape
    hidden = ids_restore.shape[1] - (kept - 1)
    blank = jnp.broadcast_to(mask_token.astype(visible.dtype), (batch, hidden, width))
    shuffled = jnp.concatenate([visible[:, 1:], blank], axis=1)
    restored = jnp.take_along_axis(shuffled, ids_restore[..., None], axis=1)
    return jnp.concatenate([visible[:, :1], restored], axis=1)


@checked(eps=positive)
def normalize_patches(
    patches: Float[Array, "batch patches values"], eps: float = EPS
) -> Float[Array, "batch patches values"]:
    """Return patches of mean 0 and variance 1 each, by the unbiased variance.

    Args:
        patches: of an image.
        eps: added to the variance.

    Raises:
        ValueError: patches of one value, which has no variance.
    """
    if patches.shape[-1] < 2:
        raise ValueError(
            f"patches has shape {patches.shape}: a patch of one value has no variance, "
            "so take larger patches, or leave the pixels as they are"
        )
    patches = as_float(patches)
    centred = patches - patches.mean(-1, keepdims=True)
    variance = jnp.sum(centred**2, -1, keepdims=True) / (patches.shape[-1] - 1)
    return centred / jnp.sqrt(variance + eps)


def patch_errors(
    predicted: Float[Array, "batch patches values"],
    patches: Float[Array, "batch patches values"],
) -> Float[Array, "batch patches"]:
    """Return the mean squared error of each patch's pixels.

    Args:
        predicted: pixels.
        patches: the true ones, from `patchify`, or normalised.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(predicted, patches, "patches")
    return ((as_float(predicted) - frozen(patches)) ** 2).mean(-1)


@checked()
def mae_reconstruction_loss(
    predicted: Float[Array, "batch patches values"],
    patches: Float[Array, "batch patches values"],
    hidden: Float[Array, "batch patches"],
) -> Float[Array, ""]:
    """Return the mean squared error of hidden patches' pixels over the whole batch.

    He et al. 2021, arXiv:2111.06377: Σ hidden · mean (predicted − patch)² / Σ hidden.

    Args:
        predicted: pixels.
        patches: the true ones, from `patchify`, or of `normalize_patches`.
        hidden: of `Masking`, times an example's weight where examples have any.

    Raises:
        ValueError: the shapes differ, or nothing is hidden.
    """
    if not isinstance(hidden, Tracer) and not np.any(np.asarray(hidden) > 0):
        raise ValueError(
            f"hidden has shape {jnp.shape(hidden)} and holds zeros alone: there is "
            "nothing to reconstruct, so hide at least one patch"
        )
    return weighted_loss(patch_errors(predicted, patches), hidden).value
