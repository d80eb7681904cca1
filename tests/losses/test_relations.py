"""Relational losses: the authors' numbers, laws, masks and hard inputs."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.losses.contrastive import crd_init, crd_loss
from jaxkd.losses.correlation import dist_loss
from jaxkd.losses.relations import cc_loss, pkt_loss, rkd_loss, sp_loss


def crd(student, teacher, weights=None):
    """CRD's first step as a scalar of the batch, to share the tests of the others."""
    state = crd_init(jax.random.key(0), 20, student.shape[1])
    index = jnp.arange(3 * len(student)).reshape(-1, 3) % 20
    loss, _ = crd_loss(state, student, teacher, index, weights=weights)
    return loss.sum() / (len(student) if weights is None else weights.sum() + 1e-30)


LOSSES = {
    "dist": dist_loss,
    "rkd": rkd_loss,
    "pkt": pkt_loss,
    "sp": sp_loss,
    "cc": cc_loss,
    "crd": crd,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def some(loss, names):
    return pytest.mark.parametrize(loss, [LOSSES[n] for n in names], ids=names)


@cache
def graded(loss):
    """One compiled value-and-gradient a loss: the tests take a fraction of the time."""
    return jax.jit(jax.value_and_grad(loss))


def jitted(loss):
    return lambda *args, **kwargs: graded(loss)(*args, **kwargs)[0]


def normal(seed, shape=(6, 5), scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def assert_golden(result, expected, precision):
    """Compare to 1e-6 in float64 and 1e-5, of the largest entry, in float32."""
    rtol = 1e-6 if precision == "float64" else 1e-5
    atol = 1e-9 if precision == "float64" else 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)


def assert_close(result, expected, tolerance=1e-5):
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


GOLDEN = [
    *[(name, case) for name in ("rkd", "pkt", "cc") for case in ("pool0", "pool1")],
    *[("sp", case) for case in ("conv0", "conv1")],
    *[("dist", case) for case in ("logit0", "logit1", "dist4d")],
]


@pytest.mark.parametrize(("name", "case"), GOLDEN)
def test_authors_value_and_gradient(golden, name, case, precision):
    def array(*keys):
        x = next(golden[f"{case}_{k}"] for k in keys if f"{case}_{k}" in golden)
        # Images are channels-last here.
        return jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x, precision)

    student, teacher = array("f_s", "student_logits"), array("f_t", "teacher_logits")
    factors = {
        "logit0": {"beta": 1.0, "gamma": 8.0},
        "logit1": {"beta": 2.5, "gamma": 4.0},
        "dist4d": {"beta": 1.5, "gamma": 0.5},
    }
    loss = partial(LOSSES[name], **factors.get(case, {}))
    value, gradient = jax.jit(jax.value_and_grad(loss))(student, teacher)
    assert_golden(value, array(f"{name}_loss", "loss"), precision)
    assert_golden(gradient, array(f"{name}_grad", "grad"), precision)


@pytest.mark.parametrize(
    ("loss", "case", "key", "factors"),
    [
        (dist_loss, "logit1", "dist_inter", (1.0, 0.0)),
        (dist_loss, "logit1", "dist_intra", (0.0, 1.0)),
        (rkd_loss, "pool0", "rkd_dist_only", (1.0, 0.0)),
        (rkd_loss, "pool0", "rkd_angle_only", (0.0, 1.0)),
    ],
)
def test_authors_parts(golden, loss, case, key, factors, precision):
    names = ("f_s", "f_t") if loss is rkd_loss else ("student_logits", "teacher_logits")
    arrays = [jnp.asarray(golden[f"{case}_{name}"], precision) for name in names]
    assert_golden(
        jax.jit(lambda s, t: loss(s, t, *factors))(*arrays),
        golden[f"{case}_{key}"],
        precision,
    )


HARD = {
    "zeros": (jnp.zeros((6, 5)), jnp.zeros((6, 5))),
    "zero student": (jnp.zeros((6, 5)), normal(0)),
    "identical": (normal(0), normal(0)),
    "all examples alike": (jnp.full((6, 5), 0.3), normal(1)),
    "two alike": (normal(0).at[1].set(normal(0)[0]), normal(1)),
    "opposite": (jnp.outer(jnp.array([1, -1, 1, -1, 1, -1]), normal(0)[0]), normal(1)),
    "huge": (normal(0, scale=1e4), normal(1, scale=1e4)),
    "constant column": (normal(0).at[:, 2].set(-1e4), normal(1).at[:, 3].set(-1e4)),
}


@every_loss
@pytest.mark.parametrize("arrays", HARD.values(), ids=HARD)
def test_hard_inputs_stay_finite(loss, arrays):
    value, gradient = graded(loss)(*arrays)
    assert jnp.isfinite(value)
    # Rounding aside, nothing blows up either: degenerate relations have no slope.
    assert jnp.abs(gradient).max() < 1e4
    one = jnp.zeros(len(arrays[0])).at[0].set(1)
    value, gradient = graded(loss)(*arrays, weights=one)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


@some("loss", ["dist", "rkd", "pkt", "sp", "cc"])
def test_identical_features_are_at_the_minimum(loss):
    value, gradient = graded(loss)(normal(0), normal(0))
    assert_close(value, 0)
    assert_close(gradient, 0)


@every_loss
def test_a_masked_example_is_as_good_as_absent(loss):
    s, t = normal(0), normal(1)
    weights = jnp.array([1.0, 0.5, 2.0, 1.0, 1.0, 1.0])

    def with_nan(x):
        return jnp.concatenate([x, jnp.full((1, x.shape[1]), jnp.nan)])

    padded = with_nan(s), with_nan(t), jnp.append(weights, 0)
    value, gradient = graded(loss)(s, t, weights=weights)
    masked_value, masked_gradient = graded(loss)(
        padded[0], padded[1], weights=padded[2]
    )
    assert_close(masked_value, value, 1e-6)
    assert_close(masked_gradient[:-1], gradient, 1e-6)
    assert jnp.all(masked_gradient[-1] == 0)
    # The weights do count, and ones are the plain loss.
    plain = jitted(loss)(s, t)
    assert abs(value - plain) > 1e-6
    assert_close(jitted(loss)(s, t, weights=jnp.ones(6)), plain, 1e-6)


@every_loss
def test_all_masked_is_zero(loss):
    nan = jnp.full((6, 5), jnp.nan)
    value, gradient = graded(loss)(nan, nan, weights=jnp.zeros(6))
    assert value == 0
    assert jnp.all(gradient == 0)


@some("loss", ["dist", "pkt", "sp"])
def test_weight_two_is_the_example_twice(loss):
    twice = jnp.array([0, 1, 1, 2, 3, 4, 5])
    weights = jnp.ones(6).at[1].set(2)
    s, t = normal(0), normal(1)
    loss = jitted(loss)
    assert_close(loss(s, t, weights=weights), loss(s[twice], t[twice]))


@pytest.mark.slow
def test_dense_dist_takes_weights_of_examples_or_pixels():
    s, t = normal(0, (3, 2, 4, 5)), normal(1, (3, 2, 4, 5))
    dist = jitted(dist_loss)
    kept = dist(s[:2], t[:2])
    examples = jnp.array([1.0, 1.0, 0.0])
    assert_close(dist(s, t, weights=examples), kept)
    pixels = jnp.broadcast_to(examples[:, None, None], (3, 2, 4))
    assert_close(dist(s, t, weights=pixels), kept)
    assert_close(dist(s.reshape(-1, 5), t.reshape(-1, 5)), dist(s, t))


def test_dist_temperature_is_squared_outside():
    s, t = normal(0), normal(1)
    expected = 16 * dist_loss(s / 4, t / 4)
    assert_close(dist_loss(s, t, temperature=4.0), expected)


@every_loss
def test_jit_and_vmap_agree_with_eager(loss):
    s, t = normal(0), normal(1)
    value = loss(s, t)
    assert_close(jitted(loss)(s, t), value)
    stacked = jax.jit(jax.vmap(loss))(jnp.stack([s, t]), jnp.stack([t, s]))
    assert_close(stacked, jnp.stack([value, jitted(loss)(t, s)]))


@every_loss
def test_bfloat16_is_computed_in_float32(loss):
    s, t = normal(0).astype(jnp.bfloat16), normal(1).astype(jnp.bfloat16)
    value = jitted(loss)(s, t)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, jitted(loss)(normal(0), normal(1)), rtol=2e-2)
    wide = jitted(loss)(s.astype(jnp.float32), t.astype(jnp.float32))
    assert_close(value, wide, 1e-6)


@pytest.mark.parametrize(
    ("names", "is_frozen"),
    [(["dist", "rkd", "pkt", "sp"], True), (["cc", "crd"], False)],
)
def test_whether_the_teacher_s_side_is_trained(names, is_frozen):
    # CC's and CRD's teacher embeddings come from a layer that learns.
    for name in names:
        gradient = jax.jit(jax.grad(LOSSES[name], argnums=1))(normal(0), normal(1))
        assert jnp.all(gradient == 0) == is_frozen


features = st.integers(0, 2**31).map(lambda seed: normal(seed))


@settings(max_examples=15, deadline=None)
@given(features, features, st.permutations(range(6)), st.floats(0.1, 10))
def test_laws(s, t, order, scale):
    order = jnp.array(order)
    rotation = jnp.linalg.qr(s[:5])[0]
    for name in ("dist", "rkd", "pkt", "sp"):
        loss = jitted(LOSSES[name])
        value = loss(s, t)
        assert value >= -1e-5
        assert_close(loss(s[order], t[order]), value, 1e-4)
        if name != "dist":
            # Relations ignore a rotation and a scale of the student's features …
            assert_close(loss(scale * s @ rotation, t), value, 1e-4)
    # … RKD a shift as well; DIST shifts an example's logits; no correlation is above 1.
    rkd, dist = jitted(rkd_loss), jitted(dist_loss)
    assert_close(rkd(s + scale, t), rkd(s, t), 1e-4)
    assert_close(dist(s + s[:, :1], t), dist(s, t), 1e-4)
    assert dist(s, t) <= 8


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dist_loss(normal(0), normal(0, (6, 4))), r"\(6, 5\).*\(6, 4\)"),
        (lambda: dist_loss(normal(0, (1, 5)), normal(0, (1, 5))), "at least 2 rows"),
        (lambda: dist_loss(normal(0), normal(0), temperature=0), "temperature"),
        (lambda: rkd_loss(normal(0), normal(0, (5, 5))), "same batch"),
        (lambda: rkd_loss(normal(0), None), "teacher_features is None"),
        (lambda: rkd_loss(normal(0, (6, 2, 2)), normal(0)), "must have 2 axes"),
        (lambda: pkt_loss(normal(0), normal(0, (6, 2, 2))), "must have 2 axes"),
        (lambda: sp_loss(normal(0, (1, 5)), normal(0, (1, 5))), "at least 2"),
        (lambda: sp_loss(normal(0), normal(0), jnp.ones(5)), r"weights has .*\(5,\)"),
        (lambda: cc_loss(normal(0), normal(0, (6, 4))), r"\(6, 5\).*\(6, 4\)"),
        (lambda: cc_loss(normal(0), normal(0), jnp.ones(7)), r"weights has .*\(7,\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
