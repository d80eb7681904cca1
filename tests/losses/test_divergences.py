"""The losses over class distributions: the authors' numbers, laws and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from jaxkd.losses.divergences import (
    cross_entropy_loss,
    ctkd_temperature,
    dkd_loss,
    kd_loss,
    scale_gradient,
    standardize_logits,
)


def lskd_loss(student, teacher, temperature=2.0):
    return kd_loss(
        standardize_logits(student), standardize_logits(teacher), temperature
    )


def ctkd_loss(student, teacher):
    return kd_loss(student, teacher, ctkd_temperature(jnp.array(0.3), -1.0))


LABELS = jnp.array([1, 0, 4, 2, 4, 3])

LOSSES = {
    "kd": kd_loss,
    "kd at T=1": lambda s, t: kd_loss(s, t, 1.0),
    "dkd": lambda s, t: dkd_loss(s, t, LABELS[: len(s)]),
    "dkd at T=1": lambda s, t: dkd_loss(s, t, LABELS[: len(s)], 1.0),
    "lskd": lskd_loss,
    "ctkd": ctkd_loss,
    "cross entropy": lambda s, t: cross_entropy_loss(s, LABELS[: len(s)], 0.1),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def logits(seed, shape=(6, 5), scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def assert_golden(result, expected, precision, rtol32=1e-5):
    """Compare to 1e-6 in float64 and, of the largest entry, ``rtol32`` in float32."""
    rtol = 1e-6 if precision == "float64" else rtol32
    atol = 1e-9 if precision == "float64" else rtol32 * np.abs(expected).max()
    np.testing.assert_allclose(result, np.squeeze(expected), rtol=rtol, atol=atol)


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


@pytest.mark.parametrize("case", ["logit0", "logit1"])
class TestAuthorsNumbers:
    @pytest.fixture
    def numbers(self, golden, case, precision):
        found = {k[len(case) + 1 :]: v for k, v in golden.items() if k.startswith(case)}
        for name in ("student_logits", "teacher_logits"):
            found[name] = jnp.asarray(found[name], precision)
        found["labels"] = jnp.asarray(found["labels"])
        for name in ("T", "alpha", "beta", "ctkd_lambda"):
            found[name] = float(found[name])
        return found

    @pytest.mark.parametrize("name", ["kd", "dkd", "lskd"])
    def test_value_and_gradient(self, numbers, name, precision):
        t, temperature = numbers["teacher_logits"], numbers["T"]
        weights = numbers["alpha"], numbers["beta"]
        losses = {
            "kd": lambda s: kd_loss(s, t, temperature),
            "dkd": lambda s: dkd_loss(s, t, numbers["labels"], temperature, *weights),
            "lskd": lambda s: lskd_loss(s, t, temperature),
        }
        value, gradient = jax.value_and_grad(lambda s: losses[name](s).mean())(
            numbers["student_logits"]
        )
        assert_golden(value, numbers[f"{name}_loss"], precision)
        assert_golden(gradient, numbers[f"{name}_grad"], precision)

    @pytest.mark.parametrize(
        ("part", "weights"), [("tckd", (1.0, 0.0)), ("nckd", (0.0, 1.0))]
    )
    def test_parts_of_dkd(self, numbers, part, weights, precision):
        s, t = numbers["student_logits"], numbers["teacher_logits"]
        loss = dkd_loss(s, t, numbers["labels"], numbers["T"], *weights).mean()
        # The stored parts carry T², as the loss does.
        assert_golden(loss, numbers[f"dkd_{part}"], precision)

    def test_ctkd_trains_theta_in_reverse(self, numbers, precision):
        def temperature(theta):
            return ctkd_temperature(theta, numbers["ctkd_lambda"])

        def loss(student, theta):
            teacher = numbers["teacher_logits"]
            return kd_loss(student, teacher, temperature(theta)).mean()

        s, theta = (
            numbers["student_logits"],
            jnp.asarray(numbers["ctkd_theta"], precision),
        )
        assert_golden(temperature(theta), numbers["ctkd_T"], precision)
        # At T = 16 the distributions are nearly flat: KL is a small difference of
        # larger terms, and θ's gradient a difference of two multiples of it.
        assert_golden(loss(s, theta), numbers["ctkd_loss"], precision, 1e-4)
        gradient, theta_gradient = jax.grad(loss, (0, 1))(s, theta)
        assert_golden(gradient, numbers["ctkd_grad"], precision)
        assert_golden(theta_gradient, numbers["ctkd_theta_grad"], precision, 5e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_optax_s(smoothing):
    z = logits(0)
    targets = optax.smooth_labels(jax.nn.one_hot(LABELS, 5), smoothing)
    expected = optax.softmax_cross_entropy(z, targets)
    np.testing.assert_allclose(
        cross_entropy_loss(z, LABELS, smoothing), expected, rtol=1e-5
    )


def test_cross_entropy_takes_tokens():
    z, labels = logits(1, (2, 3, 5)), LABELS.reshape(2, 3)
    expected = optax.softmax_cross_entropy_with_integer_labels(z, labels)
    np.testing.assert_allclose(cross_entropy_loss(z, labels), expected, rtol=1e-5)


@every_loss
def test_one_value_an_example_jitted_and_vmapped(loss):
    s, t = logits(1), logits(2)
    values = loss(s, t)
    assert values.shape == (6,)
    np.testing.assert_allclose(jax.jit(loss)(s, t), values, rtol=1e-5, atol=1e-6)
    stacked = jax.vmap(loss)(jnp.stack([s, t]), jnp.stack([t, s]))
    expected = jnp.stack([values, loss(t, s)])
    np.testing.assert_allclose(stacked, expected, rtol=1e-5, atol=1e-6)


@every_loss
def test_bfloat16_is_computed_in_float32(loss):
    s, t = logits(1).astype(jnp.bfloat16), logits(2).astype(jnp.bfloat16)
    values = loss(s, t)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, loss(logits(1), logits(2)), rtol=2e-2, atol=2e-2)


def test_dkd_is_exact_where_a_softmax_overflows():
    opposed = 50 * jnp.sign(logits(4)), -50 * jnp.sign(logits(4))
    s, t = (np.asarray(x, np.float64) for x in opposed)
    target = np.eye(5, dtype=bool)[np.asarray(LABELS)]

    def logs(z):
        log_p = z - logsumexp(z, axis=1, keepdims=True)
        rest = logsumexp(np.where(target, -np.inf, log_p), axis=1)
        return np.stack([log_p[target], rest], axis=1)

    log_s, log_t = logs(s), logs(t)
    expected = np.sum(np.exp(log_t) * (log_t - log_s), axis=1)
    loss = dkd_loss(*opposed, LABELS, temperature=1.0, alpha=1.0, beta=0.0)
    assert expected.max() > 90
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


some_logits = st.integers(0, 2**31).map(lambda seed: logits(seed, scale=4.0))


@settings(max_examples=25, deadline=None)
@given(some_logits, some_logits, st.floats(0.5, 10))
def test_kd_splits_into_dkd_s_parts(s, t, temperature):
    # Eq. 6 of the DKD paper: KD = TCKD + (1 − p_t[y])·NCKD.
    p_t = jax.nn.softmax(t / temperature)[jnp.arange(6), LABELS]
    tckd = dkd_loss(s, t, LABELS, temperature, 1.0, 0.0)
    nckd = dkd_loss(s, t, LABELS, temperature, 0.0, 1.0)
    loss = kd_loss(s, t, temperature)
    np.testing.assert_allclose(loss, tckd + (1 - p_t) * nckd, rtol=1e-3, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(some_logits, some_logits, st.floats(-50, 50), st.floats(0.1, 10))
def test_divergences_are_not_negative_and_ignore_shifts(s, t, shift, scale):
    loss = kd_loss(s, t)
    assert jnp.all(loss >= -1e-5)
    np.testing.assert_allclose(kd_loss(s + shift, t), loss, rtol=1e-3, atol=1e-3)
    # Standardised logits ignore a positive scale as well.
    np.testing.assert_allclose(
        lskd_loss(scale * s + shift, t), lskd_loss(s, t), rtol=1e-3, atol=1e-3
    )


def test_scale_gradient_is_the_identity_forward():
    halved = jax.jit(jax.value_and_grad(lambda x: scale_gradient(x, jnp.array(-0.25))))
    value, gradient = halved(2.0)
    assert (value, gradient) == (2.0, -0.25)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd_loss(logits(0), logits(0, (6, 4))), r"\(6, 5\).*\(6, 4\)"),
        (lambda: kd_loss(logits(0), None), "teacher_logits is None"),
        (lambda: kd_loss(logits(0), logits(1), 0.0), "temperature must be above 0"),
        (lambda: dkd_loss(logits(0), logits(1), LABELS, -1.0), "temperature"),
        (lambda: dkd_loss(*2 * (logits(0, (6, 1)),), 0 * LABELS), "1 class"),
        (lambda: dkd_loss(logits(0), logits(0, (4, 5)), LABELS), r"\(4, 5\)"),
        (lambda: standardize_logits(logits(0, (6, 1))), "1 class"),
        (lambda: cross_entropy_loss(logits(0), LABELS[:2]), r"labels has shape \(2,\)"),
        (lambda: cross_entropy_loss(logits(0), LABELS, 1.0), "label_smoothing"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("label", [-100, -1, 5])
def test_a_label_that_is_no_class_gives_nan_and_no_gradient(label):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    labels, counts = jnp.array([1, label]), jnp.array([True, False])
    for loss in (cross_entropy_loss, lambda z, y: dkd_loss(z, -logits[: len(z)], y)):
        values = loss(logits, labels)
        assert np.isnan(values[1])
        np.testing.assert_allclose(values[:1], loss(logits[:1], labels[:1]), rtol=1e-6)
        gradient = jax.grad(lambda z, f=loss: jnp.where(counts, f(z, labels), 0).sum())
        assert np.isfinite(gradient(logits)).all()


def test_what_are_no_probabilities_gives_nan(unchecked_shapes):
    logits = jnp.zeros((5, 2))
    labels = jnp.array([[1.0, 0], [0.3, 0.7], [5, 0], [2, -1], [0, 0]])
    found = np.isnan(cross_entropy_loss(logits, labels))
    assert found.tolist() == [False, False, True, True, True]
    rounded = jnp.full((1, 1000), 1e-3, jnp.bfloat16)
    assert np.isfinite(cross_entropy_loss(jnp.zeros((1, 1000)), rounded)).all()
    for kind in (bool, complex):
        with pytest.raises(ValueError, match=f"labels is {kind.__name__}.* indices"):
            cross_entropy_loss(logits, jnp.zeros(5, kind))
