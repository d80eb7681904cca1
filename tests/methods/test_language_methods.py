"""Methods of language models: sequences, their masks, and text that was sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import log_softmax

from jaxkd import Outputs, methods
from jaxkd.losses.language import uld_loss
from jaxkd.methods.linear_kd import TAPS

BATCH, LENGTH, VOCABULARY = 3, 5, 7
MASK = jnp.array([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])


def logits(seed, vocabulary=VOCABULARY):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 2, (BATCH, LENGTH, vocabulary)), jnp.float32)


def call(method, student, teacher, batch, step=0):
    variables = method.init(jax.random.key(0), student, teacher, batch)
    return tiny.call(
        method, variables, student, teacher, batch, jax.random.key(1), step
    )


def sampled(seed=5):
    labels = np.random.default_rng(seed).integers(0, VOCABULARY, (BATCH, LENGTH))
    return {
        "label": jnp.asarray(labels),
        "mask": MASK,
        "sampled_log_prob": jnp.full((BATCH, LENGTH), -1.5),
    }


def minillm_gradient(z_s, z_t, batch):
    method = methods.minillm()
    return jax.grad(lambda z: call(method, Outputs(z), Outputs(z_t), batch)[0])(z_s)


@pytest.mark.slow
def test_minillm_ignores_masked_tokens():
    z_s, z_t, batch = logits(0), logits(1), sampled()
    noise = 9.0 * (1 - MASK[..., None])
    plain = minillm_gradient(z_s, z_t, batch)
    np.testing.assert_allclose(
        plain, minillm_gradient(z_s + noise * logits(2), z_t + noise, batch), atol=1e-6
    )
    np.testing.assert_array_equal(plain[MASK == 0], 0)
    nothing = minillm_gradient(z_s, z_t, {**batch, "mask": 0 * MASK})
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.slow
def test_minillm_raises_tokens_that_the_teacher_prefers():
    """Of two tokens the teacher likes one; whatever is sampled, it becomes likelier."""
    method = methods.minillm(discount=0.0)
    z_t = jnp.zeros((2, 1, 2)).at[..., 0].set(2.0)
    batch = {
        "label": jnp.array([[0], [1]]),
        "mask": jnp.ones((2, 1)),
        "sampled_log_prob": jnp.full((2, 1), np.log(0.5)),
    }
    gradient = jax.grad(lambda z: call(method, Outputs(z), Outputs(z_t), batch)[0])(
        jnp.zeros((2, 1, 2))
    )
    assert (gradient[..., 0] < 0).all()


def test_minillm_weighs_tokens_by_what_they_were_drawn_with():
    """Two answers of one token, drawn at a temperature of ½."""
    z_s, z_t = np.array([1.0, 0.0]), np.array([-0.5, 0.7])
    q, p, drawn = (np.exp(z) / np.exp(z).sum() for z in (z_s, z_t, 2 * z_s))
    rewards = np.log(p) - np.log(q)
    gain = (rewards - rewards.mean()) / rewards.std(ddof=1)
    weight = q / drawn
    assert weight.min() < 0.85
    assert weight.max() > 2, "clipped"
    policy = np.maximum(-gain * weight, -gain * np.clip(weight, 0.8, 1.2)).mean()
    expected = policy + (q * np.log(q / p)).sum()
    batch = {
        "label": jnp.array([[0], [1]]),
        "sampled_log_prob": jnp.log(jnp.asarray(drawn))[:, None],
    }
    student, teacher = (
        Outputs(jnp.tile(jnp.asarray(z), (2, 1, 1))) for z in (z_s, z_t)
    )
    found, _ = call(methods.minillm(discount=0.0), student, teacher, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_minillm_watches_the_reverse_kl_of_sampled_tokens():
    batch = sampled()
    z_s, z_t = logits(0), logits(1)
    _, (_, metrics) = call(methods.minillm(), Outputs(z_s), Outputs(z_t), batch)
    log_q, log_p = (
        np.take_along_axis(log_softmax(z, -1), batch["label"][..., None], -1)[..., 0]
        for z in map(np.float64, (z_s, z_t))
    )
    gap = (log_p - log_q)[np.asarray(MASK) > 0]
    expected = np.mean(np.exp(gap) - 1 - gap)
    np.testing.assert_allclose(metrics["reverse_kl_k3"], expected, rtol=1e-5)


def test_minillm_needs_sampled_text():
    batch = {"label": jnp.zeros((BATCH, LENGTH), int)}
    with pytest.raises(ValueError, match="minillm\\(\\) needs sampled_log_prob"):
        call(methods.minillm(), Outputs(logits(0)), Outputs(logits(1)), batch)


def test_uld_is_the_mean_over_examples_with_an_answer():
    teacher_mask = jnp.ones((BATCH, LENGTH))
    batch = {"mask": MASK, "teacher_mask": teacher_mask}
    z_s, z_t = logits(0), logits(1, 9)
    found, _ = call(methods.uld(), Outputs(z_s), Outputs(z_t), batch)
    each = uld_loss(z_s, z_t, MASK, teacher_mask)
    np.testing.assert_allclose(found, each[:2].mean(), rtol=1e-6)
    with pytest.raises(ValueError, match="needs teacher_mask"):
        call(methods.uld(), Outputs(z_s), Outputs(z_t), {"mask": MASK})


@pytest.fixture(scope="module")
def hidden():
    """Outputs whose logits are those of their hidden states and heads."""
    found = []
    for seed, width in ((0, 4), (1, 6)):
        rng = np.random.default_rng(seed)
        final = jnp.asarray(rng.normal(size=(BATCH, LENGTH, width)), jnp.float32)
        head = jnp.asarray(rng.normal(size=(width, VOCABULARY)), jnp.float32)
        found.append(Outputs(final @ head, dict(zip(TAPS, (final, head), strict=True))))
    return found


def test_taid_from_heads_is_taid_from_logits(hidden):
    batch = {"mask": MASK}
    results = {}
    for from_heads in (False, True):
        method = methods.taid(10, t_start=0.3, alpha=0.1, from_heads=from_heads)
        variables = method.init(jax.random.key(0), *hidden, batch)
        for step in range(3):
            value, (state, metrics) = tiny.call(
                method, variables, *hidden, batch, jax.random.key(1), step
            )
            variables = {"params": {}, "state": method.update(state, step)}
        t = variables["state"]["schedule"].t
        results[from_heads] = value, t, metrics["taid"]
    np.testing.assert_allclose(results[True], results[False], rtol=1e-5)
    assert results[True][1] > 0.3


def test_taid_at_its_end_is_forward_kl(hidden):
    student, teacher = hidden
    batch = {"mask": MASK}
    method = methods.taid(5, t_start=0.5)
    variables = method.init(jax.random.key(0), student, teacher, batch)
    schedule = variables["state"]["schedule"].replace(t=jnp.ones(()))
    variables["state"] = {**variables["state"], "schedule": schedule}

    def gradient(method, variables):
        def loss(z):
            return tiny.call(
                method, variables, Outputs(z), teacher, batch, jax.random.key(1), 4
            )[0]

        return jax.grad(loss)(student.logits)

    kd = methods.kd(1.0)
    expected = gradient(kd, kd.init(jax.random.key(0), student, teacher, batch))
    np.testing.assert_allclose(
        gradient(method, variables), expected, rtol=1e-4, atol=1e-7
    )


def test_taid_refuses_no_steps():
    with pytest.raises(ValueError, match="total_steps must be at least 1"):
        methods.taid(0)
    with pytest.raises(ValueError, match="t_start <= t_end"):
        methods.taid(9, t_start=0.5, t_end=0.2)


@pytest.mark.slow
def test_sinkd_of_sequences_is_over_the_batch_at_each_position():
    z_s, z_t = logits(0), logits(1)
    found, _ = call(methods.sinkd(), Outputs(z_s), Outputs(z_t), {"mask": MASK})
    alone = []
    for i in range(1, LENGTH):
        batch = {"mask": MASK[:, i]}
        alone.append(
            call(methods.sinkd(), Outputs(z_s[:, i]), Outputs(z_t[:, i]), batch)[0]
        )
    np.testing.assert_allclose(found, np.mean(alone), rtol=1e-5)
