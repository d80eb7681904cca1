"""Change the spatial size of maps as PyTorch does, on which the papers' code relies.

Losses that compare maps of different sizes pool the larger one (`match_size`); fusion
modules resize by nearest neighbour.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.arguments import checked, integer
from jaxkd.losses.basics import as_float, check_array


def _spatial(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be 1 or more each way, got {size}")
    return height, width


def _pool_axis(x: Array, axis: int, size: int) -> Array:
    """Average ``x`` over the ``size`` bins of one axis."""
    length = x.shape[axis]
    if length == size:
        return x
    if length % size == 0:
        shape = (*x.shape[:axis], size, length // size, *x.shape[axis + 1 :])
        return x.reshape(shape).mean(axis + 1)
    # Bins overlap where the sizes do not divide: one small matrix averages them all.
    bins = np.arange(size)[:, None]
    first, last = bins * length // size, -(-(bins + 1) * length // size)
    inside = (np.arange(length) >= first) & (np.arange(length) < last)
    weights = jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)
    pooled = jnp.tensordot(x, weights, axes=(axis, 1), precision="highest")
    return jnp.moveaxis(pooled, -1, axis)


@checked(size=integer)
def adaptive_average_pool(
    x: Float[Array, "batch height width channels"], size: int | tuple[int, int]
) -> Float[Array, "batch out_height out_width channels"]:
    """Average over bins so that the map gets a given size.

    Bin i of n covers the rows ⌊i·height/n⌋ up to ⌈(i+1)·height/n⌉, and columns alike:
    PyTorch's rule, under which bins overlap where the sizes do not divide.

    Args:
        x: the maps; averaged in float32 and returned in their own dtype.
        size: the new (height, width), or one number for both.

    Raises:
        ValueError: ``x`` is no batch of maps, or ``size`` is below 1.
    """
    check_array("x", x, rank=4)
    height, width = _spatial("size", size)
    return _pool_axis(_pool_axis(as_float(x), 1, height), 2, width).astype(x.dtype)


@checked()
def match_size(
    student: Float[Array, "batch hs ws cs"], teacher: Float[Array, "batch ht wt ct"]
) -> tuple[Float[Array, "batch h w cs"], Float[Array, "batch h w ct"]]:
    """Average-pool the larger of two maps to the size of the smaller.

    Args:
        student: the student's maps.
        teacher: the teacher's maps; channels may differ.

    Returns:
        Both maps in float32, with the lesser height and the lesser width of the two.

    Raises:
        ValueError: either is no batch of maps, or the batches differ.
    """
    check_array("student", student, rank=4)
    check_array("teacher", teacher, rank=4)
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student has shape {student.shape} but teacher has shape "
            f"{teacher.shape}: run both networks on the same batch"
        )
    size = (
        min(student.shape[1], teacher.shape[1]),
        min(student.shape[2], teacher.shape[2]),
    )
    return (
        adaptive_average_pool(as_float(student), size),
        adaptive_average_pool(as_float(teacher), size),
    )


def _nearest(length: int, size: int) -> np.ndarray:
    # PyTorch multiplies in float32; its rounding decides which neighbour is taken.
    scale = np.float32(length) / np.float32(size)
    index = np.floor(np.arange(size, dtype=np.float32) * scale).astype(np.int32)
    return np.minimum(index, length - 1)


@checked(size=integer)
def nearest_resize(
    x: Float[Array, "batch height width channels"], size: int | tuple[int, int]
) -> Float[Array, "batch out_height out_width channels"]:
    """Resize by nearest neighbour: row i becomes row ⌊i·height/new height⌋.

    PyTorch's ``interpolate(mode="nearest")``. `jax.image.resize` takes the pixel under
    the centre instead, so that halving a map keeps other pixels.

    Args:
        x: the maps.
        size: the new (height, width), or one number for both.

    Raises:
        ValueError: ``x`` is no batch of maps, or ``size`` is below 1.
    """
    check_array("x", x, rank=4)
    height, width = _spatial("size", size)
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = _nearest(x.shape[1], height), _nearest(x.shape[2], width)
    return jnp.take(jnp.take(x, rows, axis=1), columns, axis=2)
