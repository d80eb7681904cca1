"""Methods on the logits that two networks share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import call

from jaxkd import Outputs
from jaxkd.losses import top_k_log_probs
from jaxkd.methods import (
    akl,
    cached,
    ddk,
    dist,
    divergence_kd,
    dkd,
    first,
    kd,
    linear_kd,
    lskd,
    minillm,
    pld,
    shared_vocabulary,
    sinkd,
    taid,
    topk_kd,
)

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


def cut(found):
    return Outputs(
        found.logits[..., :8], {**found.features, "head": found.features["head"][:, :8]}
    )


@pytest.mark.parametrize("make", [lambda: kd(1.0), linear_kd], ids=["kd", "linear_kd"])
def test_padding_takes_no_part(make):
    student, teacher = outputs(10, 2 * HIDDEN), outputs(8)
    shared = shared_vocabulary(make(), 8)
    expected = run(make(), cut(student), teacher)
    np.testing.assert_allclose(run(shared, student, teacher), expected, rtol=1e-6)
    # Either way around, and whatever the padding holds.
    padded = outputs(10, 2 * HIDDEN, padding=50.0)
    np.testing.assert_allclose(run(shared, padded, teacher), expected, rtol=1e-6)
    back = run(make(), teacher, cut(student))
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
    assert found == run(topk_kd(), cut(student), Outputs(None), batch)
    # Of a cache of logits these are cut.
    batch = {"teacher_logits": outputs(10, padding=50.0).logits}
    found = run(shared_vocabulary(cached(kd()), 8), student, Outputs(None), batch)
    assert found == run(kd(), cut(student), cut(outputs(10)))


def test_a_narrower_network_is_named():
    with pytest.raises(ValueError, match="size is 9, but the teacher has 8 logits"):
        run(shared_vocabulary(kd(1.0), 9), outputs(10), outputs(8))


TEXT = {
    "label": jnp.ones((2, 4), int),
    "sampled_log_prob": -jnp.ones((2, 4)),
    "teacher_logits": outputs(10).logits,
}


@pytest.mark.parametrize(
    "method",
    [
        *(akl(), ddk(), dist(), divergence_kd(), dkd(), first(k=2), kd(), linear_kd()),
        *(lskd(kd()), minillm(), pld(), sinkd(), taid(9), taid(9, from_heads=True)),
        *(topk_kd(2), cached(kd())),
    ],
)
def test_logits_of_two_widths_name_what_to_do(method, unchecked_shapes):
    with pytest.raises(ValueError, match=r"\b8\b.*\b10\b.*shared_vocabulary") as error:
        run(method, outputs(8), outputs(10), TEXT)
    assert "check_vocabularies" in str(error.value)


@pytest.mark.parametrize(
    "method", [topk_kd(), first(), shared_vocabulary(topk_kd(), 8)]
)
def test_a_cached_token_that_the_student_has_not_is_named(method):
    ids = jnp.ones((2, 4, 3), int).at[1, 2, 0].set(9)
    batch = {"teacher_ids": ids, "teacher_log_probs": -jnp.ones((2, 4, 3))}
    student = outputs(10 if method.loss.__qualname__.startswith("shared") else 8)
    with pytest.raises(ValueError, match=r"token 9 at \(1, 2, 0\).*tokens 0 to 7"):
        run(method, student, Outputs(None), batch)
