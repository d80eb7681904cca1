"""TopKLD against its limits and a sum in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import kd_loss, reverse_kd_loss, top_k_mask, topkld_loss

RNG = np.random.default_rng(0)
STUDENT, TEACHER = jnp.asarray(RNG.normal(0, 3, (2, 4, 5, 9)), "float32")


def test_no_class_gives_forward_and_all_classes_reverse_divergence():
    for head, none, every in (
        ("reverse", kd_loss, reverse_kd_loss),
        ("forward", reverse_kd_loss, kd_loss),
    ):
        for k, loss in ((0, none), (9, every)):
            found = topkld_loss(STUDENT, TEACHER, k, head=head)
            expected = loss(STUDENT, TEACHER, temperature=1.0)
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("k", "weight"), [(1, 1.0), (3, 0.5), (8, 0.0)])
def test_the_loss_is_the_sum_of_both_parts(k, weight):
    s, t = (np.asarray(z, float) for z in (STUDENT, TEACHER))
    q, p = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (s, t))
    top = np.argsort(np.argsort(-p, -1), -1) < k
    head = (q * np.log(q / p) - q + p)[top].sum()
    tail = (p * np.log(p / q) - p + q)[~top].sum()
    assert head >= 0
    assert tail >= 0
    found = topkld_loss(STUDENT, TEACHER, k, weight).sum()
    np.testing.assert_allclose(found, head + weight * tail, rtol=2e-6)


def test_exactly_k_classes_are_best_among_equals():
    assert top_k_mask(jnp.zeros((2, 5)), 3).tolist() == [[True] * 3 + [False] * 2] * 2
    for k in range(10):
        assert (top_k_mask(jnp.round(TEACHER), k).sum(-1) == k).all()


def test_the_best_are_the_teachers_and_get_no_gradient():
    slope = jax.grad(lambda t: topkld_loss(STUDENT, t, 3).sum())(TEACHER)
    assert (slope == 0).all()


@pytest.mark.parametrize("k", [0, 3])
def test_a_class_that_the_teacher_excludes_leaves_the_gradient_finite(k):
    teacher = TEACHER.at[..., -1].set(-jnp.inf)
    found, slope = jax.value_and_grad(lambda s: topkld_loss(s, teacher, k).sum())(
        STUDENT
    )
    assert np.isfinite(found)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("k", [-1, 10])
def test_more_classes_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match="k must be 0 to 9"):
        topkld_loss(STUDENT, TEACHER, k)
    with pytest.raises(ValueError, match="head"):
        topkld_loss(STUDENT, TEACHER, 3, head="backward")
