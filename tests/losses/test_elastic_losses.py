"""Losses of elastic transformers: the authors' numbers, masks and balance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import (
    balance_losses,
    cross_entropy_loss,
    cut_to_heads,
    relation_loss,
    relation_score_loss,
)


def features(relations, valid):
    """Return A (batch, length, heads · length) whose relations A·Aᵀ/√d are these."""
    gram = relations + 10_000 * (1 - valid)[:, None, None, :]
    values, vectors = np.linalg.eigh(gram)
    batch, heads, length, _ = gram.shape
    a = vectors * np.sqrt(np.maximum(values, 0))[..., None, :] * length**0.25
    return jnp.asarray(np.moveaxis(a, 1, 2).reshape(batch, length, heads * length))


@pytest.mark.parametrize("student", ["s0", "s1", "s2"])
def test_relations_of_the_authors(load_golden, student, x64):
    golden = load_golden("28-autodistil")
    valid = golden["net1/attention_mask"]
    plain = masked = expected = 0
    for kind in ("QQ", "KK", "VV"):
        s, t = (golden[f"net1/{who}{kind}"] for who in (f"{student}/", "teacher_"))
        x, y = features(s, valid), features(t, valid)
        plain += relation_score_loss(x, y, 12)
        masked += relation_score_loss(x, y, 12, jnp.asarray(valid))
        gaps = ((s - t) ** 2).mean(1) * valid[:, :, None] * valid[:, None, :]
        expected += gaps.sum(-1) / valid.sum(1, keepdims=True)
    # The code's −10000 at padded keys cancels, so that it counts them.
    loss = plain.mean()
    np.testing.assert_allclose(loss, golden[f"net1/{student}/att_loss"], rtol=1e-6)
    np.testing.assert_allclose(masked, expected, rtol=1e-6)


def test_padding_reaches_nothing():
    x, y = jax.random.normal(jax.random.key(0), (2, 2, 5, 9))
    mask = jnp.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    graded = jax.jit(
        jax.value_and_grad(lambda x, y, m: relation_score_loss(x, y, 2, m).sum())
    )
    value, gradient = graded(x, y, mask)
    hidden = jnp.where(mask[..., None] > 0, x, jnp.nan)
    again = graded(hidden, jnp.where(mask[..., None] > 0, y, jnp.nan), mask)
    np.testing.assert_array_equal(again[0], value)
    np.testing.assert_array_equal(again[1], gradient)
    assert not gradient[1].any()
    short = relation_score_loss(x[:1, :3], y[:1, :3], 2).sum()
    np.testing.assert_allclose(value, short, rtol=1e-5)


def test_surplus_features_are_cut():
    x = jnp.arange(10.0).reshape(1, 1, 10)
    assert cut_to_heads(x, 4).shape == (1, 1, 8)
    with pytest.raises(ValueError, match="heads 4 do not divide 10 features"):
        relation_loss(x, x, 4)
    with pytest.raises(ValueError, match="heads must be at most 10 features, got 11"):
        relation_score_loss(x, x, 11)


def test_other_tokens(unchecked_shapes):
    with pytest.raises(ValueError, match="run both networks on the same tokens"):
        relation_score_loss(jnp.ones((1, 1, 10)), jnp.ones((1, 2, 10)), 2)


@pytest.mark.parametrize("case", ["kd1", "kd2"])
def test_in_place_distillation_of_the_authors(load_golden, case, x64):
    golden = load_golden("03-amoeballm")
    student, teacher, mask = (
        jnp.asarray(golden[f"{case}/{name}"], float)
        for name in ("student_logits", "teacher_logits", "mask")
    )

    @jax.jit
    def loss(student, temperature, mask):
        target = jax.nn.softmax(teacher / temperature)
        losses = cross_entropy_loss(student / temperature, target)
        return (losses * mask).sum() / mask.sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(student, 1.0, mask)
    np.testing.assert_allclose(value, golden[f"{case}/kd_masked"], rtol=1e-6)
    expected = golden[f"{case}/grad_kd_masked"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    every = jnp.ones_like(mask)
    for temperature, name in ((1.0, "kd_unmasked"), (2.0, "kd_unmasked_T2")):
        value = loss(student, temperature, every)
        np.testing.assert_allclose(value, golden[f"{case}/{name}"], rtol=1e-6)


def test_soft_cross_entropy_of_the_authors(load_golden):
    golden = load_golden("28-autodistil")
    target = jax.nn.softmax(jnp.asarray(golden["sce1/targets"]))
    graded = jax.jit(jax.value_and_grad(lambda x: cross_entropy_loss(x, target).mean()))
    value, gradient = graded(jnp.asarray(golden["sce1/predicts"]))
    np.testing.assert_allclose(value, golden["sce1/loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, golden["sce1/grad"], rtol=1e-5, atol=1e-7)


def test_balanced_losses_are_equal_and_keep_their_direction():
    losses = jnp.array([2.0, 8.0, 0.0, 0.5])
    assert balance_losses(losses).tolist() == [2.0, 2.0, 0.0, 2.0]
    factors = jax.jit(jax.jacobian(balance_losses))(losses)
    assert factors.tolist() == np.diag([1.0, 0.25, 2.0, 4.0]).tolist()
