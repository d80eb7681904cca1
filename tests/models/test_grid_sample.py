"""Affine grids and bilinear sampling against SciPy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from jaxkd.models.parts.sampling import affine_grid, grid_sample

MODES = {"zeros": "grid-constant", "border": "nearest", "reflect": "reflect"}


def draw(height=5, width=7):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, height, width, 2))
    return x, np.eye(2, 3) + rng.normal(0, 0.6, (3, 2, 3))


def reference(x, theta, size, mode):
    """Read SciPy's way: pixel coordinates, one image and channel at a time."""
    height, width = x.shape[1:3]
    rows, columns = (np.arange(n) for n in size)
    found = np.zeros((len(x), *size, x.shape[-1]))
    for i, (one, (to_x, to_y)) in enumerate(zip(x, theta, strict=True)):
        for row in rows:
            for column in columns:
                place = (2 * column + 1) / size[1] - 1, (2 * row + 1) / size[0] - 1, 1
                at = (
                    [((to_y @ place + 1) * height - 1) / 2],
                    [((to_x @ place + 1) * width - 1) / 2],
                )
                for c in range(x.shape[-1]):
                    found[i, row, column, c] = ndimage.map_coordinates(
                        one[..., c], at, order=1, mode=mode
                    )[0]
    return found


@pytest.mark.parametrize("padding", MODES)
def test_values_are_scipys(x64, padding):
    x, theta = draw()

    @jax.jit
    def read(x, theta):
        return grid_sample(x, affine_grid(theta, 4, 6), padding)

    expected = reference(x, theta, (4, 6), MODES[padding])
    np.testing.assert_allclose(read(x, theta), expected, rtol=1e-12, atol=1e-12)
    single = read(np.float32(x), np.float32(theta))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_finite_differences(x64):
    x, theta = map(jnp.asarray, draw())

    @jax.jit
    def total(x, theta):
        x, theta = map(jnp.asarray, (x, theta))
        return jnp.sin(grid_sample(x, affine_grid(theta, 4, 6), "reflect")).sum()

    # Between pixels the function is smooth; at them any one-sided slope would do.
    check_grads(total, (x, theta), 1, modes=["rev"], eps=1e-7, rtol=1e-4)


def test_the_identity_and_whole_pixels():
    x = jnp.asarray(draw()[0], jnp.float32)
    eye = jnp.broadcast_to(jnp.eye(2, 3), (3, 2, 3))
    read = jax.jit(lambda theta: grid_sample(x, affine_grid(theta, 5, 7)))
    same = read(eye)
    np.testing.assert_allclose(same, x, atol=1e-5)
    # Two pixels of 7 to the right is 4/7 of half an image.
    right = eye.at[:, 0, 2].set(-4 / 7)
    found = read(right)
    np.testing.assert_allclose(found[:, :, 2:], x[:, :, :-2], atol=1e-5)
    np.testing.assert_allclose(found[:, :, :2], 0, atol=1e-5)


def test_what_does_not_fit_is_refused(unchecked_shapes):
    with pytest.raises(ValueError, match=r"theta has shape \(2, 3\)"):
        affine_grid(jnp.eye(2, 3), 4, 4)
    with pytest.raises(ValueError, match=r"of one batch"):
        grid_sample(jnp.ones((2, 4, 4, 1)), jnp.ones((3, 4, 4, 2)))
    with pytest.raises(ValueError, match="did you mean 'reflect'"):
        grid_sample(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2, 2)), "reflec")
