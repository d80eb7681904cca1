"""Pooling and resizing against loops written from PyTorch's documentation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.losses.pooling import adaptive_average_pool, match_size, nearest_resize


def random_map(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pool_by_loops(x, size):
    height, width = size
    out = np.zeros((x.shape[0], height, width, x.shape[3]))
    for i in range(height):
        top, bottom = (
            math.floor(i * x.shape[1] / height),
            math.ceil((i + 1) * x.shape[1] / height),
        )
        for j in range(width):
            left, right = (
                math.floor(j * x.shape[2] / width),
                math.ceil((j + 1) * x.shape[2] / width),
            )
            out[:, i, j] = x[:, top:bottom, left:right].astype(np.float64).mean((1, 2))
    return out


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((6, 4), (3, 2)),
        ((7, 5), (3, 2)),
        ((5, 7), (4, 7)),
        ((14, 9), (4, 1)),
        ((3, 2), (5, 4)),
        ((1, 1), (1, 1)),
    ],
)
def test_adaptive_pool_follows_the_bin_rule(shape, size):
    x = random_map(2, *shape, 3)
    pooled = jax.jit(adaptive_average_pool, static_argnums=1)(x, size)
    assert pooled.shape == (2, *size, 3)
    np.testing.assert_allclose(pooled, pool_by_loops(x, size), rtol=2e-6, atol=1e-6)


def test_adaptive_pool_gradient_spreads_over_the_bins():
    # Rows 0-1 and 1-2 of three: the middle row is in both bins.
    gradient = jax.grad(lambda x: adaptive_average_pool(x, (2, 1)).sum())(
        jnp.ones((1, 3, 1, 1))
    )
    np.testing.assert_allclose(gradient[0, :, 0, 0], [0.5, 1, 0.5], rtol=1e-6)


def test_adaptive_pool_averages_bf16_in_float32():
    x = jnp.asarray(random_map(1, 33, 32, 2), jnp.bfloat16)
    pooled = adaptive_average_pool(x, 5)
    assert pooled.dtype == jnp.bfloat16
    wide = adaptive_average_pool(x.astype(jnp.float32), 5)
    np.testing.assert_array_equal(pooled, wide.astype(jnp.bfloat16))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-1e4, 1e4, width=32))
def test_pooling_and_resizing_keep_a_constant(length, size, value):
    x = jnp.full((1, length, 2, 1), value)
    expected = jnp.full((1, size, 1, 1), value)
    np.testing.assert_allclose(
        adaptive_average_pool(x, (size, 1)), expected, rtol=1e-6, atol=1e-30
    )
    np.testing.assert_array_equal(nearest_resize(x, (size, 1)), expected)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((8, 8), (4, 4), (4, 4)),
        ((2, 2), (5, 5), (2, 2)),
        ((3, 6), (6, 3), (3, 3)),
        ((4, 4), (4, 4), (4, 4)),
    ],
)
def test_match_size_pools_the_larger(student, teacher, expected):
    s, t = random_map(2, *student, 3), random_map(2, *teacher, 5, seed=1)
    small_s, small_t = match_size(jnp.asarray(s), jnp.asarray(t))
    np.testing.assert_allclose(
        small_s, pool_by_loops(s, expected), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        small_t, pool_by_loops(t, expected), rtol=1e-5, atol=1e-6
    )
    if student == expected:
        np.testing.assert_array_equal(small_s, s)


@pytest.mark.parametrize(
    ("length", "size", "index"),
    [
        (4, 2, [0, 2]),
        (5, 3, [0, 1, 3]),
        (2, 5, [0, 0, 0, 1, 1]),
        (3, 7, [0, 0, 0, 1, 1, 2, 2]),
        (7, 4, [0, 1, 3, 5]),
        (1, 4, [0, 0, 0, 0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_nearest_takes_the_pixel_at_the_floor(length, size, index):
    x = random_map(2, length, length, 3)
    resized = nearest_resize(jnp.asarray(x), size)
    np.testing.assert_array_equal(resized, x[:, index][:, :, index])
    one_way = nearest_resize(jnp.asarray(x), (size, length))
    np.testing.assert_array_equal(one_way, x[:, index])


def test_vmap_and_batch_agree():
    x = jnp.asarray(random_map(2, 3, 7, 5, 4))
    for resize in (adaptive_average_pool, nearest_resize):
        many = jax.vmap(lambda y, resize=resize: resize(y, (3, 2)))(x)
        one = resize(x.reshape(6, 7, 5, 4), (3, 2))
        np.testing.assert_allclose(many.reshape(one.shape), one, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: adaptive_average_pool(jnp.ones((2, 3)), 1), "x must have 4 axes"),
        (lambda: adaptive_average_pool(jnp.ones((1, 2, 2, 1)), 0), "size must be 1"),
        (lambda: nearest_resize(jnp.ones((1, 2, 2, 1)), (2, 0)), "size must be 1"),
        (lambda: nearest_resize(jnp.ones((1, 2, 2)), 2), "x must have 4 axes"),
        (lambda: match_size(jnp.ones((1, 2, 2, 1)), None), "teacher is None"),
        (
            lambda: match_size(jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 2, 1))),
            r"student.*\(1, 2, 2, 1\).*teacher.*\(2, 2, 2, 1\).*same batch",
        ),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
