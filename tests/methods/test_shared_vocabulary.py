"""Methods on the logits that two networks share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import call

from jaxkd import Outputs
from jaxkd.losses import top_k_log_probs
from jaxkd.methods import kd, linear_kd, shared_vocabulary, topk_kd

RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(2, 4, 6)), jnp.float32)
HEADS = {n: jnp.asarray(RNG.normal(size=(6, n)), jnp.float32) for n in (10, 8)}


def outputs(width, hidden=HIDDEN, padding=0.0):
    """Return a language model's, with a number added to logits from the eighth on."""
    head = HEADS[width].at[:, 8:].add(padding)
    return Outputs(hidden @ head, {"final": hidden, "head": head})


def run(method, student, teacher, batch=None):
    variables = method.init(jax.random.key(0), student, teacher, batch or {})
    return call(method, variables, student, teacher, batch or {}, jax.random.key(0), 0)[
        0
    ]


def first(found):
    return Outputs(
        found.logits[..., :8], {**found.features, "head": found.features["head"][:, :8]}
    )


@pytest.mark.parametrize("make", [lambda: kd(1.0), linear_kd], ids=["kd", "linear_kd"])
def test_padding_takes_no_part(make):
    student, teacher = outputs(10, 2 * HIDDEN), outputs(8)
    shared = shared_vocabulary(make(), 8)
    expected = run(make(), first(student), teacher)
    np.testing.assert_allclose(run(shared, student, teacher), expected, rtol=1e-6)
    # Either way around, and whatever the padding holds.
    padded = outputs(10, 2 * HIDDEN, padding=50.0)
    np.testing.assert_allclose(run(shared, padded, teacher), expected, rtol=1e-6)
    back = run(make(), teacher, first(student))
    np.testing.assert_allclose(run(shared, teacher, padded), back, rtol=1e-6)


@pytest.mark.slow
def test_padding_gets_no_gradient():
    method, teacher = shared_vocabulary(kd(1.0), 8), outputs(8)
    gradient = jax.grad(lambda z: run(method, Outputs(z, {}), teacher))(
        outputs(10, 2 * HIDDEN).logits
    )
    assert jnp.all(gradient[..., 8:] == 0)
    assert jnp.abs(gradient[..., :8]).max() > 0


@pytest.mark.slow
def test_cached_teachers_need_no_logits():
    ids, log_probs = top_k_log_probs(outputs(8).logits, 3)
    batch = {"teacher_ids": ids, "teacher_log_probs": log_probs}
    student = outputs(10, 2 * HIDDEN)
    found = run(shared_vocabulary(topk_kd(), 8), student, Outputs(None), batch)
    assert found == run(topk_kd(), first(student), Outputs(None), batch)


def test_a_narrower_network_is_named():
    with pytest.raises(ValueError, match="size is 9, but the teacher has 8 logits"):
        run(shared_vocabulary(kd(1.0), 9), outputs(10), outputs(8))
