"""DistiLLM's sampling: a buffer of answers, and the share of steps that reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, methods, models
from jaxkd.generation import GREEDY
from jaxkd.kernels.linear_distill import skew_kl
from jaxkd.programs.off_policy import Replay, off_policy
from jaxkd.programs.on_policy import answered, given, on_policy

VOCABULARY, PROMPT, NEW, ROWS = 11, 4, 3, 2


@pytest.fixture(scope="module")
def networks():
    return tuple(
        models.llama(VOCABULARY, width, 1, 2, 2 * width, scan=False)
        for width in (8, 12)
    )


def examples(seed):
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, (ROWS, PROMPT + NEW))
    return {
        "input_ids": jnp.asarray(ids[:, :PROMPT], jnp.int32),
        "attention_mask": jnp.ones((ROWS, PROMPT), jnp.int32),
        "response_ids": jnp.asarray(ids[:, PROMPT:], jnp.int32),
        "response_mask": jnp.ones((ROWS, NEW), jnp.int32),
    }


@pytest.fixture(scope="module")
def batch():
    return {**examples(0), "validation": examples(1)}


METHOD = methods.linear_kd(skew_kl(0.1))


def build(networks, **changes):
    changes = {
        "steps": 8,
        "validate_every": 1,
        "max_new_tokens": NEW,
        "capacity": 2 * ROWS,
        "sampling": GREEDY,
        **changes,
    }
    return off_policy(*networks, METHOD, optax.sgd(0.1), **changes)


def rows(*values):
    return {"response_ids": jnp.array(values)[:, None]}


def test_the_buffer_keeps_the_last_rows():
    buffer = Replay.empty(rows(0, 0), 4)
    for first in (1, 3, 5):
        buffer = buffer.add(rows(first, first + 1))
    assert buffer.rows["response_ids"][:, 0].tolist() == [5, 6, 3, 4]
    assert int(buffer.added) == 6
    with pytest.raises(ValueError, match=r"capacity is 3.*whole batches of 2"):
        Replay.empty(rows(0, 0), 3)


def test_only_rows_that_are_there_are_drawn():
    buffer = Replay.empty(rows(0, 0), 6).add(rows(7, 8))
    drawn = buffer.sample(jax.random.key(0), 50)["response_ids"][:, 0].tolist()
    assert set(drawn) == {7, 8}
    assert 10 < drawn.count(7) < 40


@pytest.mark.slow
def test_it_begins_as_distill(networks, batch):
    program = build(networks, tolerance=100.0)
    seen = answered(batch, *given(batch))
    seen.pop("validation")
    plain = distill(*networks, METHOD, optax.sgd(0.1))
    expected = plain.init(jax.random.key(0), seen)
    state, plain_step = program.init(jax.random.key(0), batch), jax.jit(plain.step)
    step = jax.jit(program.step)
    for _ in range(2):
        state, metrics = step(state, batch)
        expected, _ = plain_step(expected, seen)
        assert metrics["threshold"] == metrics["written"] == metrics["replayed"] == 0
    for found, wanted in zip(
        jax.tree.leaves(state.student), jax.tree.leaves(expected.student), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_teachers_own_prompts_are_kept_with_the_answers(networks, batch):
    longer = examples(2)["input_ids"]
    ids = jnp.concatenate([longer, batch["input_ids"]], axis=1)
    more = {"teacher_input_ids": ids, "teacher_attention_mask": jnp.ones_like(ids)}
    told = {**batch, **more}
    # φ is 1 from the second step on: then it writes.
    program = build(networks, tolerance=-100.0, increment=1.0)
    plain = on_policy(
        *networks, METHOD, optax.sgd(0.1), max_new_tokens=NEW, student_share=0.0
    )
    state = program.init(jax.random.key(0), told)
    expected = jax.jit(plain.step)(plain.init(jax.random.key(0), told), told)[1]
    without = jax.jit(plain.step)(plain.init(jax.random.key(0), batch), batch)[1]
    step = jax.jit(program.step)
    state, metrics = step(state, told)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    assert abs(metrics["loss"] - without["loss"]) > 1e-4 * without["loss"]
    state, metrics = step(state, told)
    assert metrics["written"] == 1
    np.testing.assert_array_equal(state.replay.rows["teacher_input_ids"][:ROWS], ids)


@pytest.mark.slow
def test_the_share_grows_when_validation_gets_worse(networks, batch):
    program = build(networks, tolerance=-100.0, increment=0.4, validate_every=2)
    step, state = jax.jit(program.step), program.init(jax.random.key(0), batch)
    shares = []
    for _ in range(8):
        state, metrics = step(state, batch)
        shares.append(round(float(metrics["threshold"]), 3))
    assert shares == [0, 0.4, 0.4, 0.8, 0.8, 1, 1, 1]
    assert shares[-1] == float(state.threshold)


@pytest.mark.slow
def test_it_writes_until_the_buffer_is_full_and_then_reads(networks, batch):
    # φ is 1 from the second step on, and new text is asked for less and less.
    program = build(networks, tolerance=-100.0, increment=1.0, steps=4)
    step, state = jax.jit(program.step), program.init(jax.random.key(3), batch)
    origins = []
    for _ in range(8):
        state, metrics = step(state, batch)
        origins.append((int(metrics["written"]), int(metrics["replayed"])))
    assert origins[:3] == [(0, 0), (1, 0), (1, 0)]
    # Past the end nothing is written any more.
    assert origins[4:] == [(0, 1)] * 4
    kept = state.replay.rows
    assert int(state.replay.added) == ROWS * sum(written for written, _ in origins)
    np.testing.assert_array_equal(kept["input_ids"][:ROWS], batch["input_ids"])
    assert ((kept["response_ids"] >= 0) & (kept["response_ids"] < VOCABULARY)).all()


@pytest.mark.slow
def test_validation_is_the_cross_entropy_of_the_answers(networks, batch):
    state = build(networks).init(jax.random.key(0), batch)
    seen = answered(batch["validation"], *given(batch["validation"]))
    logits = (
        networks[0].apply(state.student, {"input_ids": seen["input_ids"]})[0].logits
    )
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), seen["label"][..., None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(
        state.validation_loss, -picked[:, PROMPT - 1 :].mean(), rtol=1e-5
    )


@pytest.mark.slow
def test_what_is_missing_is_named(networks, batch):
    program = build(networks)
    with pytest.raises(ValueError, match="needs validation"):
        program.init(jax.random.key(0), examples(0))
    without = {**batch, "validation": {"input_ids": batch["input_ids"]}}
    with pytest.raises(ValueError, match="attention_mask, response_ids"):
        program.init(jax.random.key(0), without)
    with pytest.raises(ValueError, match="capacity is 5"):
        build(networks, capacity=5).init(jax.random.key(0), batch)
    with pytest.raises(ValueError, match="steps and validate_every"):
        build(networks, steps=0)
