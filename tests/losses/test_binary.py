"""Losses of single logits through a sigmoid: the authors' numbers and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxkd.losses.binary import binary_kl_loss, binary_kl_norm_loss

LOSSES = {"bkl": binary_kl_loss, "bkl_norm": binary_kl_norm_loss}
both = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def logits(seed, shape=(6, 5), scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_authors_numbers(load_golden, case, name, precision, request):
    if precision == "float64":
        request.getfixturevalue("x64")
    found = load_golden("08-dhkd")
    get = {k[3:]: v for k, v in found.items() if k.startswith(case)}
    s, t = (jnp.asarray(get[f"{w}_logits"], precision) for w in ("student", "teacher"))

    def mean(s):
        loss = LOSSES[name](s, t, float(get["T"]), clip_eps=float(get["eps"]))
        return loss.mean()

    value, gradient = jax.value_and_grad(mean)(s)
    rtol = 1e-9 if precision == "float64" else 1e-5
    np.testing.assert_allclose(value, get[f"{name}_loss"], rtol=rtol)
    expected = get[f"{name}_grad"]
    atol = rtol * np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, rtol=rtol, atol=atol)


def test_the_normalised_loss_is_a_divergence_from_one_half():
    s, t = np.float64(logits(0)), np.float64(logits(1))
    q = expit((s - t) / 1.5)
    expected = 1.5**2 * np.sum(0.5 * np.log(0.5 / q) + 0.5 * np.log(0.5 / (1 - q)), -1)
    found = binary_kl_norm_loss(logits(0), logits(1), 1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradient_of_the_normalised_loss():
    s, t = logits(0), logits(1)
    found = jax.grad(lambda s: binary_kl_norm_loss(s, t, 2.0).sum())(s)
    np.testing.assert_allclose(found, 2 * (expit((s - t) / 2) - 0.5), atol=1e-6)


def test_clipping_saturates_and_stops_the_gradient():
    s, t = jnp.array([[40.0, 0.0]]), jnp.zeros((1, 2))
    clipped = binary_kl_norm_loss(s, t, 1.0, clip_eps=1e-8)
    bound = 0.5 * -np.log(1e-8) - np.log(2)
    np.testing.assert_allclose(clipped, [bound], rtol=1e-6)
    gradient = jax.grad(lambda s: binary_kl_norm_loss(s, t, 1.0, 1e-8).sum())(s)
    np.testing.assert_array_equal(gradient, 0)
    kept = jax.grad(lambda s: binary_kl_norm_loss(s, t, 1.0).sum())(s)
    np.testing.assert_allclose(kept, [[0.5, 0.0]])


@both
def test_a_common_shift_is_seen(loss):
    s = logits(0)
    assert (loss(s + 1.0, s) > 0.01).all()


@both
def test_bf16_jit_and_vmap(loss):
    s, t = (x.astype(jnp.bfloat16) for x in (logits(0), logits(1)))
    expected = loss(s.astype(jnp.float32), t.astype(jnp.float32))
    assert expected.shape == (6,)
    np.testing.assert_array_equal(loss(s, t), expected)
    np.testing.assert_allclose(jax.jit(loss)(s, t), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(s, t), expected, rtol=1e-6)


@both
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named(loss):
    s, t = logits(0), logits(1)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        loss(s, t, -1.0)
    with pytest.raises(ValueError, match=r"clip_eps must be in \(0, 0.5\) or None"):
        loss(s, t, 1.0, 0.5)
    with pytest.raises(ValueError, match=r"teacher_logits has shape \(6, 4\)"):
        loss(s, t[:, :4])
