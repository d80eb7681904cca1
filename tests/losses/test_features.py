"""Losses on features, attention's too: authors' numbers, extremes and laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from jaxkd.losses.attention import at_loss, cwd_loss, ft_loss, nst_loss
from jaxkd.losses.features import (
    ab_loss,
    fsp_loss,
    fsp_matrix,
    hcl_loss,
    hint_loss,
    mgd_loss,
    mgd_mask,
    ofd_loss,
    ofd_margin,
    vid_log_scale_init,
    vid_loss,
)


def vid(student, teacher):
    return vid_loss(student, jnp.linspace(-1.0, 5.0, student.shape[-1]), teacher)


def fsp(student, teacher):
    return fsp_loss((student, student[:, ::2, ::2] ** 2), (teacher, teacher[..., ::-1]))


def ofd(student, teacher):
    return ofd_loss(student, teacher, jnp.linspace(-1.0, -0.1, student.shape[-1]))


LOSSES = {
    "at": at_loss,
    "nst": nst_loss,
    "ft": ft_loss,
    "cwd": cwd_loss,
    "hint": hint_loss,
    "vid": vid,
    "ab": ab_loss,
    "fsp": fsp,
    "ofd": ofd,
    "hcl": hcl_loss,
    "mgd": mgd_loss,
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_precision = pytest.mark.parametrize("precision", ["float64", "float32"])


def maps(shape=(3, 4, 4, 6), seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    return tuple(jnp.asarray(scale * random.normal(size=shape), "f4") for _ in range(2))


def channels_last(x):
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def stages(first, second):
    """Name golden arrays of two layers in the order of the arguments."""
    return [f"conv0_{key}" for key in (first[0], second[0], first[1], second[1])]


LAYERS = ("f_s", "f_t"), ("ab_f_s2", "ab_f_t2")
# name: loss, its arguments' keys, its value's key, its gradients' keys.
GOLDEN = {
    f"{name} {case}": (
        LOSSES[name],
        [f"{case}_f_s", f"{case}_f_t"],
        f"{case}_{name}_loss",
        [f"{case}_{name}_grad"],
    )
    for name in ("at", "nst", "ft")
    for case in ("conv0", "conv1")
}
for stage, layer in enumerate(LAYERS):
    GOLDEN[f"ab {stage}"] = (
        lambda s, t, weight=2.0 ** (stage - 1) * 3 / 1000: weight * ab_loss(s, t),
        [f"conv0_{key}" for key in layer],
        f"conv0_ab_loss{stage}",
        [f"conv0_ab_grad{stage}"],
    )
for name, loss in {
    "fsp": lambda s1, s2, t1, t2: fsp_loss((s1, s2), (t1, t2)),
    "hcl": lambda s1, s2, t1, t2: hcl_loss(s1, t1) + hcl_loss(s2, t2),
}.items():
    grads = [f"conv0_{name}_grad{stage}" for stage in range(2)]
    GOLDEN[name] = (loss, stages(*LAYERS), f"conv0_{name}_loss", grads)
GOLDEN["ofd"] = (
    lambda s, t, margin: ofd_loss(s, t, margin.ravel()),
    ["conv0_f_s", "conv0_f_t", "conv0_ofd_margin"],
    "conv0_ofd_loss",
    ["conv0_ofd_grad"],
)


@each_precision
@pytest.mark.parametrize("name", GOLDEN)
def test_values_and_gradients_match_the_authors(golden, name, precision):
    loss, arguments, value_key, grad_keys = GOLDEN[name]
    with jax.enable_x64(precision == "float64"):
        arrays = [jnp.asarray(channels_last(golden[k]), precision) for k in arguments]
        wrt = tuple(range(len(grad_keys)))
        value, grads = jax.jit(jax.value_and_grad(lambda *a: loss(*a).mean(), wrt))(
            *arrays
        )
    rtol, atol = (1e-6, 1e-9) if precision == "float64" else (1e-5, 1e-6)
    np.testing.assert_allclose(value, golden[value_key], rtol=rtol)
    for grad, key in zip(grads, grad_keys, strict=True):
        expected = channels_last(golden[key])
        largest = np.abs(expected).max()
        np.testing.assert_allclose(grad, expected, rtol=rtol, atol=atol * largest)


@each_precision
def test_ofd_margin_matches_the_authors(golden, precision):
    with jax.enable_x64(precision == "float64"):
        margin = ofd_margin(
            jnp.asarray(golden["conv0_ofd_bn_weight"], precision),
            jnp.asarray(golden["conv0_ofd_bn_bias"], precision),
        )
    # The authors' own was computed in float32.
    np.testing.assert_allclose(margin, golden["conv0_ofd_margin"].ravel(), rtol=1e-5)


def test_ofd_margin_is_the_truncated_mean_where_that_is_usual():
    z = np.array([-1e3, -30, -5, -1, 0, 1, 3, 3.05, 3.2, 10, 1e4])
    scale = np.array([1, -2, 0.5, 1, 3, -1, 2, 1, 1, 1, 2])
    with np.errstate(invalid="ignore"):
        usual = z * abs(scale) - abs(scale) * norm.pdf(z) / norm.cdf(-z)
    expected = np.where(norm.cdf(-z) > 0.001, usual, -3 * abs(scale))
    margin = ofd_margin(jnp.asarray(scale, "f4"), jnp.asarray(z * abs(scale), "f4"))
    np.testing.assert_allclose(margin, expected, rtol=2e-5)


def test_ofd_margin_of_a_constant_channel():
    bias = jnp.array([-3.0, 0.0, 2.0])
    np.testing.assert_array_equal(ofd_margin(jnp.zeros(3), bias), [-3.0, 0.0, 0.0])
    tiny = ofd_margin(jnp.full(3, 1e-30), bias)
    np.testing.assert_allclose(tiny, [-3.0, 0.0, 0.0], atol=1e-29)


def test_ofd_has_the_three_regions_of_the_paper():
    student, teacher = (np.asarray(x) for x in maps((4, 6, 6, 3), scale=2))
    margin = np.array([-0.5, -1, -2], "f4")
    t = teacher.reshape(4, 3, 2, 3, 2, 3).mean((2, 4))
    s = student[:, :3, :3]
    regions = (
        (s - margin) ** 2 * ((s > margin) & (t <= margin))
        + (s - t) ** 2 * ((s > t) & (t > margin) & (t <= 0))
        + (s - t) ** 2 * (t > 0)
    )
    loss = ofd_loss(*map(jnp.asarray, (s, teacher, margin)))
    np.testing.assert_allclose(loss, regions.sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4), (2, 3, 3, 4), (2, 1, 2, 3, 2)])
def test_squared_losses_take_any_rank(shape):
    student, teacher = maps(shape)
    square = np.square(np.asarray(student, "f8") - np.asarray(teacher)).reshape(2, -1)
    np.testing.assert_allclose(hint_loss(student, teacher), square.mean(1), rtol=1e-5)
    np.testing.assert_allclose(mgd_loss(student, teacher), square.sum(1), rtol=1e-5)


def test_hcl_uses_only_smaller_sizes():
    student, teacher = maps((2, 1, 1, 5))
    np.testing.assert_array_equal(
        hcl_loss(student, teacher), hint_loss(student, teacher)
    )
    student, teacher = maps((2, 8, 8, 5))
    levels = [1.0, 0.5, 0.25, 0.125]

    def pooled(x, size):
        step = 8 // size
        return x.reshape(2, size, step, size, step, 5).mean((2, 4))

    expected = sum(
        weight * hint_loss(pooled(student, size), pooled(teacher, size))
        for weight, size in zip(levels, [8, 4, 2, 1], strict=True)
    ) / sum(levels)
    np.testing.assert_allclose(hcl_loss(student, teacher), expected, rtol=1e-5)


def test_fsp_matrix_pools_the_larger_layer():
    first, second = maps((2, 4, 4, 3))[0], maps((2, 2, 2, 5), seed=1)[0]
    small = first.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    expected = np.einsum("bhwc,bhwd->bcd", small, second) / 4
    np.testing.assert_allclose(
        fsp_matrix(first, second), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("variance", [0.1, 5.0, 500.0])
def test_vid_starts_at_the_variance(variance):
    student, teacher = maps((2, 3, 3, 4))
    log_scale = jnp.full(4, vid_log_scale_init(variance))
    square = np.square(np.asarray(student - teacher, "f8"))
    expected = 0.5 * (square / variance + np.log(variance)).mean((1, 2, 3))
    np.testing.assert_allclose(
        vid_loss(student, log_scale, teacher), expected, rtol=1e-4
    )


def test_vid_gradients_stay_finite_for_any_scale():
    student, teacher = maps((2, 3, 3, 4), scale=1e4)
    log_scale = jnp.array([-1e4, -50.0, 50.0, 1e4])
    grads = jax.grad(lambda *a: vid_loss(*a, teacher).sum(), (0, 1))(student, log_scale)
    assert all(np.isfinite(g).all() for g in grads)


@each_loss
def test_value_and_gradient_stay_finite(loss):
    student, teacher = maps((6, 4, 4, 6))
    # Nothing, no student, no teacher, the same, huge, and an ordinary example.
    student = student * jnp.array([0, 0, 1, 1, 1e4, 1])[:, None, None, None]
    teacher = teacher * jnp.array([0, 1, 0, 1, 1e4, 1])[:, None, None, None]
    teacher = teacher.at[3].set(student[3])
    run = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).sum()))
    for examples in (slice(None), slice(5, 6)):
        value, gradient = run(student[examples], teacher[examples])
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["at", "nst", "ft", "cwd", "hint", "hcl", "mgd"])
def test_the_teacher_itself_is_the_minimum(name):
    _, teacher = maps()
    # Not jitted: compiled apart, the two sides may round apart, and ft tells the sign.
    run = jax.value_and_grad(lambda s: LOSSES[name](s, teacher).sum())
    value, gradient = run(teacher)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, jnp.zeros_like(teacher), atol=1e-6)


@each_loss
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = maps()
    gradient = jax.grad(lambda t: loss(student, t).sum())(teacher)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(teacher))


@each_loss
def test_examples_do_not_touch_each_other(loss):
    student, teacher = maps()
    rotten = jnp.full_like(student[:1], jnp.nan)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def run(s, t):
        values = loss(s, t)
        return jnp.where(jnp.arange(len(values)) < 3, values, 0).sum(), values

    clean = run(student, teacher)
    (_, values), gradient = run(
        jnp.concatenate([student, rotten]), jnp.concatenate([teacher, rotten])
    )
    assert values.shape == (4,)
    np.testing.assert_allclose(values[:3], clean[0][1], rtol=1e-6)
    np.testing.assert_allclose(gradient[:3], clean[1], rtol=1e-5, atol=1e-6)


@each_loss
def test_jit_and_vmap_agree_with_eager(loss):
    student, teacher = maps((2, 3, 4, 4, 6))
    eager = jnp.stack([loss(s, t) for s, t in zip(student, teacher, strict=True)])
    fast = jax.jit(jax.vmap(loss))(student, teacher)
    np.testing.assert_allclose(fast, eager, rtol=2e-5, atol=1e-6)


@each_loss
def test_bf16_is_computed_in_float32(loss):
    narrow = [x.astype(jnp.bfloat16) for x in maps()]
    if loss is fsp:  # its helper would round the second layer in bf16
        narrow = [x.astype(jnp.float32) for x in narrow]
    value = loss(*narrow)
    assert value.dtype == jnp.float32
    wide = loss(*(x.astype(jnp.float32) for x in narrow))
    np.testing.assert_array_equal(value, wide)
    np.testing.assert_allclose(value, loss(*maps()), rtol=2e-2)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_losses_are_not_negative_and_follow_the_batch_order(seed, scale):
    student, teacher = maps((3, 2, 2, 4), seed=seed, scale=scale)
    order = np.array([2, 0, 1])
    for name, loss in LOSSES.items():
        values = loss(student, teacher)
        if name != "vid":
            assert (values >= -1e-6).all(), name
        permuted = loss(student[order], teacher[order])
        np.testing.assert_allclose(permuted, values[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape"), [("spatial", (64, 8, 8, 1)), ("channel", (64, 1, 1, 64))]
)
def test_mgd_mask_drops_at_the_ratio(kind, shape):
    key = jax.random.key(0)
    mask = mgd_mask(key, (64, 8, 8, 64), 0.75, kind)
    assert mask.shape == shape
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_allclose(mask.mean(), 0.25, atol=0.03)
    np.testing.assert_array_equal(mask, mgd_mask(key, (64, 8, 8, 64), 0.75, kind))
    for ratio in (0.0, 1.0):
        np.testing.assert_array_equal(
            mgd_mask(key, (64, 8, 8, 64), ratio, kind), jnp.full(shape, 1.0 - ratio)
        )


A, B, C = (jnp.ones(s) for s in [(2, 4, 4, 3), (2, 4, 4, 5), (2, 2, 2, 3)])
one, three = jnp.ones(1), jnp.ones(3)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: at_loss(A, jnp.ones((3, 4, 4, 3))),
            r"student.*\(2.*teacher.*\(3.*same",
        ),
        (lambda: hint_loss(A, B), r"\(2, 4, 4, 3\).*\(2, 4, 4, 5\): project"),
        (lambda: hint_loss(A, None), "teacher_features is None"),
        (lambda: hint_loss(three, three), "batch axis and at least one more"),
        (lambda: ab_loss(A, B), r"\(2, 4, 4, 3\).*\(2, 4, 4, 5\): project"),
        (lambda: ab_loss(A, A, margin=0), "margin must be above 0"),
        (lambda: mgd_loss(A, C), r"\(2, 4, 4, 3\).*\(2, 2, 2, 3\): project"),
        (lambda: hcl_loss(A, C), r"\(2, 4, 4, 3\).*\(2, 2, 2, 3\): project"),
        (
            lambda: fsp_loss((A, C), (A, B)),
            r"\(2, 2, 2, 3\).*\(2, 4, 4, 5\).*Connector",
        ),
        (lambda: fsp_loss((A, C), (A, None)), "teacher is None"),
        (lambda: ofd_loss(A, B, three), r"\(2, 4, 4, 3\).*\(2, 4, 4, 5\).*Connector"),
        (lambda: ofd_loss(A, C, one), r"margin has shape \(1,\).*3 channels"),
        (lambda: ofd_margin(three, one), r"bias has shape \(1,\).*3 channels"),
        (lambda: vid_loss(A, one, A), r"log_scale has shape \(1,\).*3 channels"),
        (lambda: vid_loss(A, three, B), r"\(2, 4, 4, 3\).*\(2, 4, 4, 5\): project"),
        (lambda: vid_log_scale_init(0.0), "variance must be above eps"),
        (lambda: mgd_mask(jax.random.key(0), A.shape, 1.5), "ratio must be in"),
        (lambda: mgd_mask(jax.random.key(0), A.shape, 0.5, "all"), "kind.*'all'"),
        (lambda: mgd_mask(jax.random.key(0), (2, 3), 0.5), r"shape must.*\(2, 3\)"),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
