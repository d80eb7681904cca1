"""DDK's weights against an independent float64 computation, and their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import rel_entr
from tiny import call

from jaxkd import Outputs, methods
from jaxkd.kernels.linear_distill import reverse_kl

STUDENT = np.array([9.0, 4.5, 30.0, 6.0])
TEACHER = np.array([3.0, 3.0, 12.0, 5.0])


def first(student, teacher):
    """Equation 1 as it is printed, in float64."""
    found = np.exp(student / teacher)
    return found / found.sum()


def second(factor, student, teacher, alpha):
    """Equation 2 as it is printed, in float64."""
    psi = factor * np.exp(student / teacher)
    return alpha * psi / psi.sum() + (1 - alpha) / len(psi)


def test_factors_are_those_of_the_equations(x64):
    start = methods.discrepancy_init(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    np.testing.assert_allclose(start, first(STUDENT, TEACHER), rtol=1e-12)
    factor = np.array([0.1, 0.2, 0.3, 0.4])
    for alpha in (0.0, 0.5, 0.8, 1.0):
        found = methods.discrepancy_update(
            jnp.asarray(factor), jnp.asarray(STUDENT), jnp.asarray(TEACHER), alpha
        )
        expected = second(factor, STUDENT, TEACHER, alpha)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, 5, elements=st.floats(0.0078125, 1, width=32)),
    arrays.arrays(np.float32, 5, elements=st.floats(1, 8192, width=32)),
    st.floats(0, 1),
)
def test_factors_are_within_their_bounds(factor, student, alpha):
    factor = factor / factor.sum()
    found = methods.discrepancy_update(
        jnp.asarray(factor), jnp.asarray(student), jnp.ones(5), alpha
    )
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)
    assert float(found.min()) >= (1 - alpha) / 5 - 1e-6
    assert float(found.max()) <= alpha + (1 - alpha) / 5 + 1e-6


def test_an_untrained_student_overflows_nothing():
    student, teacher = jnp.array([1e6, 3.0, 2.0]), jnp.array([2.0, 2.0, 2.0])
    start = methods.discrepancy_init(student, teacher)
    np.testing.assert_array_equal(start, [1, 0, 0])
    # A domain that got nothing comes back by the floor.
    found = methods.discrepancy_update(start, jnp.array([2.0, 8, 2]), teacher)
    np.testing.assert_allclose(found, [2 / 3, 1 / 6, 1 / 6], rtol=1e-6)


def evaluation(values):
    return {"step": 1, "other": 0.5} | {
        f"perplexity/{name}": value for name, value in zip("abcd", values, strict=True)
    }


def test_weights_follow_from_the_evaluations():
    later = [STUDENT * 0.8, STUDENT * np.array([0.5, 0.9, 0.4, 0.8])]
    given_ = (evaluation(STUDENT), evaluation(TEACHER))
    assert methods.ddk_weights(*given_, []) is None
    expected = first(STUDENT, TEACHER)
    for i in (1, 2):
        history = [evaluation(values) for values in later[:i]]
        expected = second(expected, later[i - 1], TEACHER, 0.7)
        found = methods.ddk_weights(*given_, history, alpha=0.7)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        plain = methods.ddk_weights(*given_, history, smooth=False)
        np.testing.assert_allclose(plain, first(later[i - 1], TEACHER), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": jnp.array([1.0, 0.0])}, "student must be above 0"),
        ({"teacher": jnp.array([1.0, -1.0])}, "teacher must be above 0"),
        ({"factor": jnp.array([0.5, 0.6])}, "factor must be a distribution"),
        ({"factor": jnp.array([1.2, -0.2])}, "factor must be a distribution"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_factors_are_refused(changes, message):
    arguments = {"factor": jnp.ones(2) / 2, "student": jnp.ones(2)}
    arguments |= {"teacher": jnp.ones(2), **changes}
    with pytest.raises(ValueError, match=message):
        methods.discrepancy_update(**arguments)


def test_domains_that_differ_are_refused(unchecked_shapes):
    with pytest.raises(ValueError, match="of 2 domains, teacher of 3"):
        methods.discrepancy_init(jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match=r"factor is of 2 domains.*of 3"):
        methods.discrepancy_update(jnp.ones(2) / 2, jnp.ones(3), jnp.ones(3))


def outputs(seed, width):
    keys = jax.random.split(jax.random.key(seed), 2)
    final = jax.random.normal(keys[0], (2, 3, width))
    head = jax.random.normal(keys[1], (width, 7))
    return Outputs(final @ head, {"final": final, "head": head})


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


@pytest.mark.parametrize("backward", [False, True])
def test_the_loss_is_that_of_the_equation(backward):
    student, teacher = outputs(0, 4), outputs(1, 5)
    label = np.array([[1, 2, 3], [4, 5, 6]])
    mask = np.array([[True, True, False], [True, False, False]])
    batch = {"label": jnp.asarray(label), "mask": jnp.asarray(mask)}
    z_s, z_t = (np.asarray(x.logits, np.float64) for x in (student, teacher))
    ce = -np.log(np.take_along_axis(softmax(z_s), label[..., None], -1)[..., 0])
    p, q = softmax(z_t / 2), softmax(z_s / 2)
    kl = (rel_entr(q, p) if backward else rel_entr(p, q)).sum(-1)
    expected = (ce + 0.2 * 4 * kl)[mask].mean()
    changes = {"divergence": reverse_kl} if backward else {}
    for from_heads in (False, True):
        method = methods.ddk(0.2, 2.0, from_heads=from_heads, **changes)
        variables = method.init(jax.random.key(0), student, teacher, batch)
        loss, _ = call(method, variables, student, teacher, batch, jax.random.key(0), 0)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        methods.ddk(-0.1)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        methods.ddk(0.1, 0.0)
