"""Correlations of channels and classes: the authors' numbers, laws, masks, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.losses import cam_relation_loss, class_activation_maps, ickd_loss, sp_loss


def normal(seed, shape, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


def assert_golden(result, expected, precision):
    """Compare to 1e-9 in float64 and 1e-5, of the largest entry, in float32."""
    rtol = 1e-9 if precision == "float64" else 1e-5
    scale = np.abs(expected).max()
    np.testing.assert_allclose(result / scale, expected / scale, rtol=rtol, atol=rtol)


def mean_ickd(student, teacher):
    return ickd_loss(student, teacher).mean()


CASES = {
    "chan1": (mean_ickd, "f_s", "f_t"),
    "sem1": (mean_ickd, "g_s", "g_t"),
    "rel1": (sp_loss, "f_s", "f_t"),
    "rel2": (sp_loss, "f_s", "f_t"),
}
graded = {f: jax.jit(jax.value_and_grad(f)) for f in (mean_ickd, sp_loss)}
cam = jax.jit(jax.value_and_grad(cam_relation_loss))


@pytest.mark.parametrize("case", CASES)
def test_authors_value_and_gradient(load_golden, case, precision):
    golden = load_golden("20-diswot")
    loss, *names = CASES[case]

    def array(name):
        x = golden[f"{case}_{name}"]
        # Images are channels-last here.
        return jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x, precision)

    value, gradient = graded[loss](*map(array, names))
    assert_golden(value, array("loss"), precision)
    expected = array(f"grad_{names[0]}")
    if case == "sem1":
        # A vector's row i is sign(g_i)·g/‖g‖, flat in g_i: the slope through its norm
        # cancels, and leaves rounding over |g_i|.
        size = jnp.minimum(jnp.abs(array(names[0])), 1)
        gradient, expected = gradient * size, expected * size
    assert_golden(gradient, expected, precision)


def test_a_vector_of_channels_has_a_closed_form():
    """Row i of its Gram matrix, normalised, is sign(g_i)·g/‖g‖."""
    s, t = normal(0, (7, 5)), normal(1, (7, 5))
    unit = [np.asarray(x / jnp.linalg.norm(x, axis=1, keepdims=True)) for x in (s, t)]
    signs = (np.sign(s) * np.sign(t)).sum(1)
    expected = 2 - 2 / 5 * signs * (unit[0] * unit[1]).sum(1)
    np.testing.assert_allclose(ickd_loss(s, t), expected, rtol=1e-5)


def reference_cam(student, teacher):
    """Return the loss in float64 NumPy, written as the paper's sums."""

    def correlations(x):
        x = np.asarray(x, np.float64)
        classes = [x[..., n].ravel() for n in range(x.shape[-1])]
        gram = np.array([[a @ b for b in classes] for a in classes])
        return gram / np.linalg.norm(gram, axis=1, keepdims=True)

    gap = correlations(student) - correlations(teacher)
    return (gap**2).sum() / student.shape[-1] ** 2


def test_cam_relation_is_the_papers_sum():
    s, t = normal(0, (3, 4, 4, 5)), normal(1, (3, 2, 2, 5))
    np.testing.assert_allclose(cam(s, t)[0], reference_cam(s, t), rtol=1e-5)


def test_the_maps_mean_is_the_logits():
    features, kernel = normal(0, (3, 4, 4, 6)), normal(1, (6, 5))
    maps = class_activation_maps(features, kernel)
    assert maps.shape == (3, 4, 4, 5)
    logits = features.mean((1, 2)) @ kernel
    np.testing.assert_allclose(maps.mean((1, 2)), logits, rtol=1e-4, atol=1e-5)


SHAPE = (3, 2, 2, 5)
HARD = {
    "zeros": (jnp.zeros(SHAPE), jnp.zeros(SHAPE)),
    "zero student": (jnp.zeros(SHAPE), normal(0, SHAPE)),
    "identical": (normal(0, SHAPE), normal(0, SHAPE)),
    "huge": (normal(0, SHAPE, 1e4), normal(1, SHAPE, 1e4)),
    "a dead channel": (normal(0, SHAPE).at[..., 2].set(0), normal(1, SHAPE)),
    "one example": (normal(0, SHAPE)[:1], normal(1, SHAPE)[:1]),
}


@pytest.mark.parametrize("function", [graded[mean_ickd], cam], ids=["ickd", "cam"])
@pytest.mark.parametrize("arrays", HARD.values(), ids=HARD)
def test_hard_inputs_stay_finite(function, arrays):
    value, gradient = function(*arrays)
    assert jnp.isfinite(value)
    assert jnp.abs(gradient).max() < 1e4
    if jnp.array_equal(*arrays):
        assert value < 1e-12
        assert jnp.abs(gradient).max() < 1e-6


def test_rows_shorter_than_the_floor_are_not_stretched():
    """The authors divide by at least 1e-12, and so leave tiny gradients out."""
    tiny = 1e-8 * jnp.array([[1.0, 2.0, 2.0]])
    zero = jnp.zeros((1, 3))
    rows = 1e-16 * np.outer([1, 2, 2], [1, 2, 2]) / 1e-12
    np.testing.assert_allclose(ickd_loss(tiny, zero), [(rows**2).sum() / 3], rtol=1e-5)


def test_masked_examples_do_not_count():
    s, t = normal(0, SHAPE), normal(1, SHAPE)
    weights = jnp.array([1.0, 1.0, 0.0])
    value, gradient = cam(s.at[2].set(jnp.nan), t.at[2].set(jnp.nan), weights)
    expected, kept = cam(s[:2], t[:2])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:2], kept, rtol=1e-5, atol=1e-7)
    assert jnp.all(gradient[2] == 0)
    twice = jnp.array([0, 1, 1])
    doubled, _ = cam(s[:2], t[:2], jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(doubled, cam(s[twice], t[twice])[0], rtol=1e-5)


def test_all_masked_is_zero():
    nan = jnp.full(SHAPE, jnp.nan)
    value, gradient = cam(nan, nan, jnp.zeros(3))
    assert value == 0
    assert jnp.all(gradient == 0)


@pytest.mark.slow
def test_bfloat16_is_computed_in_float32():
    s, t = normal(0, SHAPE).astype(jnp.bfloat16), normal(1, SHAPE).astype(jnp.bfloat16)
    for loss in (ickd_loss, cam_relation_loss):
        value = loss(s, t)
        assert value.dtype == jnp.float32
        wide = loss(s.astype(jnp.float32), t.astype(jnp.float32))
        np.testing.assert_allclose(value, wide, rtol=1e-6)


def test_vmap_and_the_frozen_teacher():
    s, t = normal(0, SHAPE), normal(1, SHAPE)
    for loss in (mean_ickd, cam_relation_loss):
        stacked = jax.vmap(loss)(jnp.stack([s, t]), jnp.stack([t, s]))
        np.testing.assert_allclose(stacked, [loss(s, t), loss(t, s)], rtol=1e-5)
        assert jnp.all(jax.grad(loss, argnums=1)(s, t) == 0)


seeds = st.integers(0, 2**31)


@settings(max_examples=15, deadline=None)
@given(seeds, seeds, st.floats(0.1, 10), st.permutations(range(5)))
def test_laws(a, b, scale, order):
    """Neither a scale, nor an order of positions or of channels matters."""
    s, t = normal(a, SHAPE), normal(b, SHAPE)
    for function in (graded[mean_ickd], cam):
        value = function(s, t)[0]
        assert value >= 0
        channels = jnp.array(order)
        for changed in (
            function(scale * s, t),
            function(s[:, ::-1], t),
            function(s[..., channels], t[..., channels]),
        ):
            np.testing.assert_allclose(changed[0], value, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ickd_loss(x, x[..., :4]), r"\(3, 2, 2, 5\).*\(3, 2, 2, 4\)"),
        (lambda x: ickd_loss(x, x[:2]), "examples .first axis. and channels"),
        (lambda x: ickd_loss(x, None), "teacher_features is None"),
        (lambda x: cam_relation_loss(x, x[..., :4]), "the same batch and classes"),
        (lambda x: cam_relation_loss(x, x, jnp.ones(2)), r"weights has shape \(2,\)"),
        (lambda x: class_activation_maps(x, jnp.ones((4, 7))), r"kernel .*\(4, 7\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(0, SHAPE))
