"""What attention losses mean and refuse; test_features.py has the authors' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from jaxkd.losses.attention import at_loss, attention_map, cwd_loss, ft_loss, nst_loss


def random_map(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# More channels than positions, and fewer: the two forms of the product.
@pytest.mark.parametrize(("cs", "ct", "side"), [(9, 7, 2), (2, 3, 5), (8, 8, 1)])
def test_nst_is_the_mean_kernel_over_all_pairs(cs, ct, side):
    student = random_map(2, side, side, cs)
    teacher = random_map(2, side, side, ct, seed=1)

    def unit(x):
        x = np.asarray(x, np.float64).reshape(2, -1, x.shape[-1])
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def kernel(a, b):
        return ((a[:, :, :, None] * b[:, :, None]).sum(1) ** 2).mean((1, 2))

    s, t = unit(student), unit(teacher)
    expected = kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    np.testing.assert_allclose(nst_loss(student, teacher), expected, atol=2e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_is_the_divergence_over_positions(temperature):
    student, teacher = 3 * random_map(2, 3, 4, 4, 6)

    def log_p(x):
        x = np.asarray(x, np.float64).reshape(3, 16, 6)
        return log_softmax(x / temperature, axis=1)

    s, t = log_p(student), log_p(teacher)
    expected = temperature**2 * (np.exp(t) * (t - s)).sum(1).mean(-1)
    np.testing.assert_allclose(
        cwd_loss(student, teacher, temperature), expected, rtol=1e-5
    )


positive = st.floats(0.01, 100)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), positive, positive)
def test_attention_ignores_scale_and_channel_order(seed, student_scale, teacher_scale):
    student, teacher = random_map(2, 2, 3, 3, 5, seed=seed)
    order = np.random.default_rng(seed).permutation(5)
    channel_scales = student_scale * jnp.arange(1.0, 6.0)
    for loss, scale in (
        (at_loss, student_scale),
        (ft_loss, student_scale),
        (nst_loss, channel_scales),
    ):
        changed = loss((student * scale)[..., order], teacher * teacher_scale)
        np.testing.assert_allclose(
            changed, loss(student, teacher), rtol=1e-4, atol=1e-5
        )


def test_attention_map_is_a_unit_vector():
    lengths = jnp.linalg.norm(attention_map(random_map(3, 4, 4, 6)), axis=-1)
    np.testing.assert_allclose(lengths, jnp.ones(3), rtol=1e-6)


def test_a_position_that_agrees_pulls_nowhere_in_ft():
    factor = random_map(2, 3, 3, 4)
    gradient = jax.grad(lambda f: ft_loss(f, factor).sum())(factor)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(factor))


A, C = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 2, 2, 3))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: at_loss(A, None), "teacher is None"),
        (lambda: nst_loss(jnp.ones((2, 5)), A), r"student must have 4 axes.*\(2, 5\)"),
        (lambda: cwd_loss(A, C), r"student_features.*teacher_features.*project"),
        (lambda: cwd_loss(A, A, 0.0), "temperature must be above 0"),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
