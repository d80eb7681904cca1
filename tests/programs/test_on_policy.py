"""Distillation on sampled answers: what is sampled, and what a step then sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Network, distill, methods, models
from jaxkd.generation import GREEDY, Sampling, generate
from jaxkd.kernels.linear_distill import jensen_shannon
from jaxkd.networks.mixed import mixed
from jaxkd.programs.on_policy import answered, on_policy
from jaxkd.programs.update import Keys

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
ONES = jnp.ones((2, PROMPT), int)


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


def sums(seed, vocabulary=VOCABULARY):
    """Return a network whose logits are the sum of what the tokens so far say."""

    def apply(params, inputs):
        told = params["table"][inputs["input_ids"]]
        return jnp.cumsum(told * inputs["attention_mask"][..., None], axis=1)

    shape = vocabulary, vocabulary
    return Network.from_apply(
        lambda key: {"table": jax.random.normal(jax.random.key(seed), shape)},
        apply,
        taps=("cache",),
        reads=("input_ids", "attention_mask"),
    )


def own_prompts(role, length, empty):
    ids = np.random.default_rng(length).integers(1, VOCABULARY, (2, length))
    real = np.arange(length) >= np.array(empty)[:, None]
    return {
        f"{role}_input_ids": jnp.asarray(ids * real, jnp.int32),
        f"{role}_attention_mask": jnp.asarray(real, jnp.int32),
    }


def answer_log_probs(batch, role, table, row):
    """Return log-probabilities where a row's answer is predicted, in float64."""
    mask = np.asarray(batch[f"{role}attention_mask"][row]) > 0
    prompt = np.asarray(batch[f"{role}input_ids"][row])[mask]
    answer = np.asarray(batch["response_ids"][row])
    answer = answer[np.asarray(batch["response_mask"][row]) > 0]
    told = np.asarray(table, np.float64)[[*prompt, *answer[:-1]]]
    logits = np.cumsum(told, axis=0)[len(prompt) - 1 :]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    ("role", "length", "empty"),
    [("teacher", 9, (0, 3)), ("teacher", 2, (1, 0)), ("student", 7, (2, 0))],
)
def test_each_network_reads_the_answer_after_its_own_prompt(batch, role, length, empty):
    batch = {**batch, **own_prompts(role, length, empty)}
    networks = sums(1), sums(2)
    program = on_policy(
        *networks,
        methods.kd(1.0),
        optax.sgd(0.1),
        max_new_tokens=NEW,
        student_share=0.0,
    )
    state = program.init(jax.random.key(0), batch)
    tables = [v["params"]["table"] for v in (state.student, state.teacher)]
    _, metrics = jax.jit(program.step)(state, batch)
    total = 0.0
    for row in range(2):
        log_q, log_p = (
            answer_log_probs(batch, f"{who}_" if who == role else "", table, row)
            for who, table in zip(("student", "teacher"), tables, strict=True)
        )
        assert len(log_q) == len(log_p) == batch["response_mask"][row].sum()
        total += (np.exp(log_p) * (log_p - log_q)).sum()
    np.testing.assert_allclose(
        metrics["kd"], total / batch["response_mask"].sum(), rtol=1e-5
    )


@pytest.mark.slow
def test_a_teacher_answers_its_own_prompt_and_says_what_it_drew_with(networks, batch):
    """The student learns on what the teacher wrote, being told more and drawing."""
    drawn = methods.from_loss(lambda s, t, b: b["sampled_log_prob"], name="drawn")
    sampling = Sampling(temperature=0.7, top_k=4)
    program = on_policy(
        *networks,
        methods.combine((1.0, drawn), (1.0, METHOD)),
        optax.sgd(0.1),
        max_new_tokens=NEW,
        student_share=0.0,
        teacher_share=1.0,
        sampling=sampling,
    )
    more = own_prompts("teacher", PROMPT + 3, (0, 2))
    told = {**batch, **more}
    state = program.init(jax.random.key(0), told)
    _, metrics = jax.jit(program.step)(state, told)
    found = generate(
        networks[1],
        state.teacher,
        {name.removeprefix("teacher_"): value for name, value in more.items()},
        max_new_tokens=NEW,
        key=Keys(state.key).at(state.step).sampling,
        sampling=sampling,
    )
    np.testing.assert_allclose(
        metrics["drawn"], found.sampled_log_probs.mean(), rtol=1e-5
    )
    assert abs(metrics["drawn"] - found.log_probs.mean()) > 0.1
    assert np.isfinite(metrics["linear_kd"])


def test_what_drew_the_batchs_own_answers_is_not_known(networks, batch):
    program = on_policy(
        *networks, methods.minillm(), optax.sgd(0.1), max_new_tokens=NEW
    )
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="student_share and teacher_share are 1 in"):
        jax.eval_shape(program.step, state, batch)


def test_a_mixture_is_of_the_tokens_that_both_have():
    both = mixed(sums(1), sums(2, VOCABULARY + 3), 0.25)
    variables = both.init(jax.random.key(0))
    inputs = {"input_ids": jnp.array([[1, 2]]), "attention_mask": jnp.ones((1, 2))}
    tables = [variables[name]["params"]["table"] for name in ("first", "second")]
    p, q = (jax.nn.softmax(t[jnp.array([1, 2]), :VOCABULARY].sum(0)) for t in tables)
    found = jnp.exp(both.apply(variables, inputs)[0].logits[0, -1])
    np.testing.assert_allclose(found, 0.75 * p + 0.25 * q, rtol=1e-5)


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
        ({}, {"teacher_input_ids": ONES}, "answers need teacher_attention_mask"),
        ({}, {"teacher_mask": ONES}, "has teacher_mask, as of a teacher with another"),
        (
            {"teacher_mixture": 0.2},
            {"teacher_input_ids": ONES, "teacher_attention_mask": ONES},
            r"teacher_mixture is 0.2.*\['teacher_input_ids', 'teacher_attention_mask'",
        ),
    ],
)
def test_bad_input(networks, batch, shares, change, message, unchecked_shapes):
    changed = {k: v for k, v in {**batch, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        build(networks, **shares).init(jax.random.key(0), changed)
