"""Plackett-Luce losses: the authors' numbers, their laws, and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.losses.ranking import plackett_luce_loss, pld_loss, teacher_ranking

LABELS = jnp.array([1, 0, 4, 2, 4, 3])


def logits(seed, shape=(6, 5), scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def in_numpy(s, t, labels, temperature):
    """Eq. by Eq. in float64, one example and one place after another."""
    losses = []
    for s_i, t_i, y in zip(
        *(np.asarray(x, float) for x in (s, t)), labels, strict=True
    ):
        order = sorted(range(len(s_i)), key=lambda c: (c != y, -t_i[c]))
        q = softmax(t_i / temperature)
        losses.append(
            sum(
                q[c] * (logsumexp([s_i[r] for r in order[k:]]) - s_i[c])
                for k, c in enumerate(order)
            )
        )
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_authors_numbers(load_golden, case, precision, request):
    if precision == "float64":
        request.getfixturevalue("x64")
    found = load_golden("27-pld")
    get = {k[3:]: v for k, v in found.items() if k.startswith(case)}
    s, t = (jnp.asarray(get[f"{w}_logits"], precision) for w in ("student", "teacher"))
    labels = jnp.asarray(get["labels"])

    value, gradient = jax.value_and_grad(
        lambda s: pld_loss(s, t, labels, float(get["T"])).mean()
    )(s)
    rtol = 1e-12 if precision == "float64" else 1e-5
    np.testing.assert_allclose(value, get["loss"], rtol=rtol)
    scale = np.abs(get["grad"]).max()
    np.testing.assert_allclose(gradient, get["grad"], rtol=rtol, atol=rtol * scale)
    ranking = teacher_ranking(t, labels).reshape(-1, s.shape[-1])
    np.testing.assert_array_equal(ranking[:, ::-1], get["ranking_ascending"])


def test_each_example_against_numpy():
    s, t = logits(0), logits(1)
    np.testing.assert_allclose(
        pld_loss(s, t, LABELS, 2.0), in_numpy(s, t, LABELS, 2.0), rtol=1e-5
    )


def test_the_label_goes_first_and_ties_keep_their_order():
    t = jnp.array([[1.0, 3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    ranking = teacher_ranking(t, jnp.array([2, 3]))
    assert ranking.tolist() == [[2, 1, 3, 0], [3, 0, 1, 2]]
    assert jnp.array_equal(
        teacher_ranking(t.astype(jnp.bfloat16), jnp.array([2, 3])), ranking
    )


def test_first_place_alone_is_cross_entropy():
    s, t = logits(0), logits(1)
    first = jnp.zeros((6, 5)).at[:, 0].set(1)
    loss = plackett_luce_loss(s, teacher_ranking(t, LABELS), first)
    np.testing.assert_allclose(loss, cross_entropy_loss(s, LABELS), rtol=1e-6)


def test_a_sure_teacher_leaves_cross_entropy():
    s = logits(0)
    t = 50.0 * jax.nn.one_hot(LABELS, 5)
    loss = pld_loss(s, t, LABELS)
    np.testing.assert_allclose(loss, cross_entropy_loss(s, LABELS), rtol=1e-6)


def test_last_place_adds_nothing():
    ranking = teacher_ranking(logits(1), LABELS)
    last = jnp.zeros((6, 5)).at[:, -1].set(1)
    np.testing.assert_array_equal(plackett_luce_loss(logits(0), ranking, last), 0)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.2, 8))
@settings(max_examples=25, deadline=None)
def test_laws(seed, shift, temperature):
    s, other, t = logits(seed), logits(seed + 1), logits(seed + 2)

    def loss(s):
        return pld_loss(s, t, LABELS, temperature)

    value = loss(s)
    assert (value >= 0).all()
    np.testing.assert_allclose(loss(s + shift), value, rtol=1e-4, atol=1e-4)
    gradient = jax.grad(lambda s: loss(s).sum())(s)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-5)
    # Convex: below the chord.
    assert (loss((s + other) / 2) <= (value + loss(other)) / 2 + 1e-4).all()


def test_bf16_is_computed_in_float32():
    s, t = (x.astype(jnp.bfloat16) for x in (logits(0), logits(1)))
    loss = pld_loss(s, t, LABELS)
    assert loss.dtype == jnp.float32
    expected = pld_loss(s.astype(jnp.float32), t.astype(jnp.float32), LABELS)
    np.testing.assert_array_equal(loss, expected)


def test_under_jit_and_vmap_and_with_one_class():
    s, t = logits(0), logits(1)
    expected = pld_loss(s, t, LABELS)
    np.testing.assert_allclose(jax.jit(pld_loss)(s, t, LABELS), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(pld_loss)(s, t, LABELS), expected, rtol=1e-6)
    one = pld_loss(s[:, :1], t[:, :1], jnp.zeros(6, int))
    np.testing.assert_array_equal(one, 0)


def test_a_label_that_is_no_class_gives_nan():
    found = pld_loss(logits(0), logits(1), LABELS.at[0].set(5).at[1].set(-1))
    assert np.isnan(found).tolist() == [True, True, False, False, False, False]


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named():
    s, t = logits(0), logits(1)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        pld_loss(s, t, LABELS, 0)
    with pytest.raises(ValueError, match=r"student_logits has shape \(6, 5\)"):
        pld_loss(s, t[:, :4], LABELS)
    with pytest.raises(ValueError, match=r"labels is float32.* needs class indices"):
        pld_loss(s, t, jax.nn.one_hot(LABELS, 5))
    with pytest.raises(ValueError, match=r"labels has shape \(3,\) but teacher_logits"):
        pld_loss(s, t, LABELS[:3])
    with pytest.raises(ValueError, match=r"weights has shape \(5,\) but logits has"):
        plackett_luce_loss(s, teacher_ranking(t, LABELS), jnp.ones(5))
