"""Read images between their pixels: affine grids and bilinear sampling.

Jaderberg et al. 2015, arXiv:1506.02025 (spatial transformers). Coordinates are
PyTorch's with ``align_corners=False``: −1 and 1 are the outer edges of the first and
the last pixel, so that pixel i of n has its centre at (2i + 1)/n − 1.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, count

Padding = Literal["zeros", "border", "reflect"]


@checked(height=count, width=count)
def affine_grid(
    theta: Float[Array, "batch 2 3"], height: int, width: int
) -> Float[Array, "batch height width 2"]:
    """Return where an affine map reads each pixel: θ·(x, y, 1) for its centre (x, y).

    Args:
        theta: θ; its last column moves by parts of half an image, and with the identity
            before it the pixels stay in place.
        height: of the image that is made.
        width: likewise.

    Returns:
        The (x, y) that each pixel is read at.

    Raises:
        ValueError: θ is not (batch, 2, 3).
    """
    if jnp.ndim(theta) != 3 or jnp.shape(theta)[1:] != (2, 3):
        raise ValueError(
            f"theta has shape {jnp.shape(theta)}, but it must be (batch, 2, 3): a "
            "2x2 matrix and a shift for each image"
        )
    theta = jnp.asarray(theta)
    x, y = (
        (2 * jnp.arange(size, dtype=theta.dtype) + 1) / size - 1
        for size in (width, height)
    )
    xy = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
    linear = jnp.einsum("bij,hwj->bhwi", theta[..., :2], xy, precision="highest")
    return linear + theta[:, None, None, :, 2]


@checked()
def grid_sample(
    x: Float[Array, "batch height width channels"],
    grid: Float[Array, "batch out_height out_width 2"],
    padding: Padding = "zeros",
) -> Float[Array, "batch out_height out_width channels"]:
    """Return images read at a grid's places, bilinearly between four pixels.

    It is differentiable by the images and by the grid. PyTorch's ``grid_sample`` gives
    the same numbers, of channels first.

    Args:
        x: images.
        grid: (x, y) of each pixel, as `affine_grid` gives them.
        padding: what lies outside: ``"zeros"``, the nearest pixel (``"border"``), or
            the image mirrored at its edges (``"reflect"``).

    Raises:
        ValueError: shapes that do not fit, or an unknown padding.
    """
    x, grid = jnp.asarray(x), jnp.asarray(grid)
    if x.ndim != 4 or grid.ndim != 4 or grid.shape[-1] != 2 or len(x) != len(grid):
        raise ValueError(
            f"x has shape {x.shape} and grid {grid.shape}, but they must be (batch, "
            "height, width, channels) and (batch, height, width, 2) of one batch"
        )
    sizes = x.shape[2], x.shape[1]
    places = [
        _padded((grid[..., i] + 1) * size / 2 - 0.5, size, padding)
        for i, size in enumerate(sizes)
    ]
    first = [jnp.floor(place) for place in places]
    rest = [place - low for place, low in zip(places, first, strict=True)]
    # Image by image, so that a batch that is split over devices stays so.
    read = jax.vmap(lambda image, row, column: image[row, column])

    def corner(right: int, below: int) -> Array:
        """Return one of the four pixels around each place, times its weight."""
        column, row = first[0] + right, first[1] + below
        weight = (rest[0] if right else 1 - rest[0]) * (
            rest[1] if below else 1 - rest[1]
        )
        inside = (column >= 0) & (column < sizes[0]) & (row >= 0) & (row < sizes[1])
        at = [
            jnp.clip(place, 0, size - 1).astype(jnp.int32)
            for place, size in zip((column, row), sizes, strict=True)
        ]
        pixels = read(x, at[1], at[0])
        return jnp.where(inside, weight, 0)[..., None].astype(x.dtype) * pixels

    return corner(0, 0) + corner(1, 0) + corner(0, 1) + corner(1, 1)


def _padded(place: Array, size: int, padding: Padding) -> Array:
    """Return pixel coordinates brought inside, unless what is outside is zero."""
    if padding == "reflect":
        # Mirrors at the outer edges, -0.5 and size - 0.5; the clip keeps to the pixels.
        folded = jnp.mod(place + 0.5, 2 * size)
        place = jnp.minimum(folded, 2 * size - folded) - 0.5
    return place if padding == "zeros" else jnp.clip(place, 0, size - 1)
