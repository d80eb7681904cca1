"""Distillation on sampled answers: what is sampled, and what a step then sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, methods, models
from jaxkd.generation import GREEDY, generate
from jaxkd.kernels.linear_distill import jensen_shannon
from jaxkd.networks.mixed import mixed
from jaxkd.programs.on_policy import answered, on_policy

VOCABULARY, PROMPT, NEW = 11, 4, 3


def network(width):
    return models.llama(VOCABULARY, width, 1, 2, 2 * width, scan=False)


@pytest.fixture(scope="module")
def networks():
    return network(8), network(12)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)

    def ids(*shape):
        return jnp.asarray(rng.integers(1, VOCABULARY, shape), jnp.int32)

    return {
        "input_ids": ids(2, PROMPT).at[1, :2].set(0),
        "attention_mask": jnp.ones((2, PROMPT), jnp.int32).at[1, :2].set(0),
        "response_ids": ids(2, NEW),
        "response_mask": jnp.array([[1, 1, 1], [1, 1, 0]]),
    }


METHOD = methods.linear_kd(jensen_shannon(0.5))


def build(networks, **shares):
    return on_policy(
        *networks, METHOD, optax.sgd(0.1), max_new_tokens=NEW, sampling=GREEDY, **shares
    )


def parameters(state):
    return np.concatenate([x.ravel() for x in jax.tree.leaves(state.student["params"])])


def test_rows_line_up(batch):
    found = answered(
        batch, batch["response_ids"], batch["response_mask"], jnp.full((2, NEW), -2.0)
    )
    row = [*batch["input_ids"][1].tolist(), *batch["response_ids"][1].tolist()]
    assert found["input_ids"][1].tolist() == row[:-1]
    assert found["label"][1].tolist() == row[1:]
    assert found["mask"][1].tolist() == [0, 0, 0, 1, 1, 0]
    assert found["attention_mask"][1].tolist() == [0, 0, 1, 1, 1, 1]
    assert found["position_ids"][1].tolist() == [0, 0, 0, 1, 2, 3]
    assert found["sampled_log_prob"][1].tolist() == [0, 0, 0, -2, -2, -2]
    assert "response_ids" not in found


@pytest.mark.slow
def test_without_sampling_it_is_distill_bit_for_bit(networks, batch):
    off = distill(*networks, METHOD, optax.sgd(0.1))
    on = build(networks, student_share=0.0)
    rows = answered(
        batch, batch["response_ids"], batch["response_mask"], jnp.zeros((2, NEW))
    )
    first = on.init(jax.random.key(0), batch)
    expected, _ = jax.jit(off.step)(off.init(jax.random.key(0), rows), rows)
    found, metrics = jax.jit(on.step)(first, batch)
    np.testing.assert_array_equal(parameters(found), parameters(expected))
    assert metrics["response_tokens"] == 2.5


@pytest.mark.slow
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_step_trains_on_what_the_network_wrote(networks, batch, who):
    on = build(networks, **{"student_share": 0.0, f"{who}_share": 1.0})
    prompts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    state = on.init(jax.random.key(0), prompts)
    index = ("student", "teacher").index(who)
    written = generate(
        networks[index],
        (state.student, state.teacher)[index],
        {name: batch[name] for name in ("input_ids", "attention_mask")},
        max_new_tokens=NEW,
        sampling=GREEDY,
    )
    off = distill(*networks, METHOD, optax.sgd(0.1))
    rows = answered(
        batch, written.tokens, written.mask.astype(jnp.int32), written.log_probs
    )
    expected, _ = jax.jit(off.step)(state, rows)
    found, _ = jax.jit(on.step)(state, prompts)
    np.testing.assert_allclose(
        parameters(found), parameters(expected), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_the_share_is_a_probability_of_steps(networks, batch):
    on = build(networks, student_share=0.5)
    step = jax.jit(on.step)
    state = on.init(jax.random.key(1), batch)
    lengths = []
    for _ in range(24):
        state, metrics = step(state, batch)
        lengths.append(float(metrics["response_tokens"]))
    # Sampled answers have no end here, hence 3 tokens; the batch's have 2.5.
    assert set(lengths) == {2.5, 3.0}
    assert 6 <= lengths.count(3.0) <= 18


@pytest.mark.slow
def test_minillm_samples_from_the_mixture(networks, batch):
    program = on_policy(
        *networks,
        methods.minillm(),
        optax.sgd(0.1),
        max_new_tokens=NEW,
        student_share=1.0,
        teacher_mixture=0.2,
        eos=3,
    )
    prompts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    state = program.init(jax.random.key(0), prompts)
    before = parameters(state)
    state, metrics = jax.jit(program.step)(state, prompts)
    assert np.isfinite(metrics["loss"])
    assert (parameters(state) != before).any()


@pytest.mark.slow
def test_mixture_of_distributions(networks, batch):
    both = mixed(*networks, 0.25)
    variables = both.init(jax.random.key(0))
    inputs = {"input_ids": batch["input_ids"]}
    mixture, _ = both.apply(variables, inputs, taps=("cache",))
    p, q = (
        jax.nn.softmax(network.apply(variables[name], inputs)[0].logits)
        for network, name in zip(networks, ("first", "second"), strict=True)
    )
    np.testing.assert_allclose(
        jnp.exp(mixture.logits), 0.75 * p + 0.25 * q, rtol=1e-5, atol=1e-7
    )
    tokens = generate(both, variables, inputs, max_new_tokens=2, sampling=GREEDY).tokens
    longer = jnp.concatenate([batch["input_ids"], tokens[:, :1]], axis=1)
    again, _ = both.apply(variables, {"input_ids": longer})
    np.testing.assert_array_equal(tokens[:, 1], again.logits[:, -1].argmax(-1))
    with pytest.raises(ValueError, match="share must be in"):
        mixed(*networks, 1.0)


@pytest.mark.parametrize(
    ("shares", "change", "message"),
    [
        ({"student_share": 0.8, "teacher_share": 0.4}, {}, "at most 1 in all"),
        ({}, {"attention_mask": None}, "answers need attention_mask"),
        ({}, {"response_ids": None}, "need response_ids"),
        ({}, {"response_ids": jnp.zeros((2, 9), int)}, "max_new_tokens 3"),
    ],
)
def test_bad_input(networks, batch, shares, change, message, unchecked_shapes):
    changed = {k: v for k, v in {**batch, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        build(networks, **shares).init(jax.random.key(0), changed)
