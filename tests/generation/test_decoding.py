"""Generation against transformers, against forwards without a cache, and its laws."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from jaxkd import interop
from jaxkd.generation import GREEDY, Sampling, generate, sampling_logits
from jaxkd.models import llama, mlp

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
NETWORK = llama(vocabulary=17, width=16, layers=2, heads=4, hidden=24, kv_heads=2)
LENGTHS = np.array([3, 6, 1])
"""Tokens of the prompts, which are padded before them."""


@pytest.fixture(scope="module")
def variables():
    start = jax.jit(NETWORK.init)(jax.random.key(0))
    # Logits of a fresh model are almost equal.
    return jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, start)


def prompts():
    mask = np.arange(6)[None] >= 6 - LENGTHS[:, None]
    ids = jax.random.randint(jax.random.key(1), (3, 6), 1, 17) * mask
    return {"input_ids": ids, "attention_mask": jnp.asarray(mask, jnp.int32)}


@functools.cache
def whole(network):
    return jax.jit(lambda v, x: network.apply(v, {"input_ids": x})[0].logits)


def continued(network, variables, row, tokens):
    """Return the log-probabilities of a row's new tokens by one forward of all."""
    inputs = prompts()
    prompt = np.asarray(inputs["input_ids"][row, 6 - LENGTHS[row] :])
    ids = np.concatenate([prompt, tokens])[None]
    logits = whole(network)(variables, np.pad(ids, ((0, 0), (0, 16 - ids.shape[1]))))
    log_probs = jax.nn.log_softmax(logits[0, len(prompt) - 1 : ids.shape[1] - 1])
    return np.asarray(log_probs)


@pytest.mark.parametrize("window", [None, 3])
def test_greedy_tokens_are_those_without_a_cache(variables, window):
    sizes = {"width": 16, "layers": 2, "heads": 4, "hidden": 24, "kv_heads": 2}
    network = llama(17, **sizes, window=window)
    found = generate(network, variables, prompts(), max_new_tokens=8, sampling=GREEDY)
    assert found.mask.all()
    for row, tokens in enumerate(np.asarray(found.tokens)):
        log_probs = continued(network, variables, row, tokens)
        assert tokens.tolist() == log_probs.argmax(-1).tolist()
        np.testing.assert_allclose(found.log_probs[row], log_probs.max(-1), atol=1e-5)
    assert (found.sampled_log_probs == 0).all(), "the most likely token is certain"


def test_drawn_tokens_have_the_models_log_probabilities(variables):
    sampling = Sampling(temperature=1.5, top_k=5)
    found = [
        generate(
            *(NETWORK, variables, prompts()),
            max_new_tokens=8,
            key=jax.random.key(seed),
            sampling=sampling,
        )
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    assert (found[0].tokens != found[2].tokens).any()
    for row, tokens in enumerate(np.asarray(found[0].tokens)):
        log_probs = continued(NETWORK, variables, row, tokens)
        own = log_probs[np.arange(8), tokens]
        np.testing.assert_allclose(found[0].log_probs[row], own, atol=1e-5)
        assert ((log_probs > own[:, None]).sum(-1) < 5).all()
        drawn = jax.nn.log_softmax(sampling_logits(jnp.asarray(log_probs), sampling))
        drawn = drawn[np.arange(8), tokens]
        np.testing.assert_allclose(found[0].sampled_log_probs[row], drawn, atol=1e-5)
        assert (np.asarray(drawn) > own).all(), "five tokens have all the probability"


def test_no_token_is_drawn_that_another_network_lacks(variables):
    found = generate(
        *(NETWORK, variables, prompts()),
        max_new_tokens=8,
        key=jax.random.key(0),
        vocabulary=4,
    )
    assert found.tokens.max() < 4
    assert len(np.unique(found.tokens)) > 1
    # The model's own distribution has the other 13 tokens too.
    assert (found.sampled_log_probs > found.log_probs).all()


@pytest.mark.slow
def test_a_row_ends_at_its_end_and_the_loop_with_the_last(variables):
    plain = generate(NETWORK, variables, prompts(), max_new_tokens=8, sampling=GREEDY)
    eos = int(plain.tokens[0, 2])
    found = generate(
        *(NETWORK, variables, prompts()),
        max_new_tokens=8,
        sampling=GREEDY,
        eos=(eos, 99),
        pad=5,
    )
    for row, tokens in enumerate(np.asarray(plain.tokens).tolist()):
        end = tokens.index(eos) + 1 if eos in tokens else 8
        assert found.tokens[row].tolist() == tokens[:end] + [5] * (8 - end)
        assert found.mask[row].tolist() == [i < end for i in range(8)]
        assert (found.log_probs[row, end:] == 0).all()
    alone = {name: value[:1] for name, value in prompts().items()}
    short = generate(
        NETWORK, variables, alone, max_new_tokens=8, sampling=GREEDY, eos=eos
    )
    assert short.mask[0].sum() == plain.tokens[0].tolist().index(eos) + 1


def test_one_token_needs_no_loop(variables):
    found = generate(NETWORK, variables, prompts(), max_new_tokens=1, sampling=GREEDY)
    longer = generate(NETWORK, variables, prompts(), max_new_tokens=8, sampling=GREEDY)
    np.testing.assert_array_equal(found.tokens[:, 0], longer.tokens[:, 0])


@pytest.mark.slow
def test_it_runs_in_a_train_step(variables):
    def loss(params, key):
        own = {**variables, "params": params}
        made = generate(NETWORK, own, prompts(), max_new_tokens=4, key=key)
        logits = NETWORK.apply(own, {"input_ids": made.tokens})[0].logits
        return optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], made.tokens[:, 1:]
        ).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(
        variables["params"], jax.random.key(0)
    )
    assert np.isfinite(value)
    assert optax.tree.norm(gradients) > 0


def test_bfloat16_generates_from_a_bfloat16_cache(variables):
    network = NETWORK.computing_in(jnp.bfloat16)
    found = generate(network, variables, prompts(), max_new_tokens=8, sampling=GREEDY)
    exact = generate(NETWORK, variables, prompts(), max_new_tokens=8, sampling=GREEDY)
    np.testing.assert_allclose(
        found.log_probs[:, 0], exact.log_probs[:, 0], rtol=0.05, atol=0.05
    )
    assert found.log_probs.dtype == jnp.float32


@pytest.mark.slow
def test_on_a_mesh_the_tokens_are_the_same(variables):
    mesh = jax.make_mesh(
        (2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto, AxisType.Auto)
    )
    inputs = {name: value[jnp.array([0, 1, 2, 0])] for name, value in prompts().items()}
    plain = generate(NETWORK, variables, inputs, max_new_tokens=6, sampling=GREEDY)
    with jax.set_mesh(mesh):
        found = generate(NETWORK, variables, inputs, max_new_tokens=6, sampling=GREEDY)
    np.testing.assert_array_equal(found.tokens, plain.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("llama", "llama_rope31", "qwen2", "qwen3", "gpt2", "mistral_window"),
        *("gemma2", "gemma3", "olmo2", "smollm3", "granite", "phi3"),
    ],
)
def test_greedy_tokens_are_those_of_transformers(name):
    network, weights = interop.load_pretrained(GOLDEN / name)
    expected = np.load(GOLDEN / name / "io.npz")
    prompt, generated = expected["prompt"], expected["generated"]
    new = generated.shape[1] - prompt.shape[1]
    eos = json.loads((GOLDEN / name / "config.json").read_text())["eos_token_id"]
    found = generate(
        *(network, weights, {"input_ids": prompt}),
        max_new_tokens=new,
        sampling=GREEDY,
        eos=eos,
    )
    np.testing.assert_array_equal(found.tokens, generated[:, prompt.shape[1] :])


GOOD = {"input_ids": np.ones((2, 3), int)}
HOLES = np.array([[1, 1, 1], [1, 0, 1]])


@pytest.mark.parametrize(
    ("inputs", "arguments", "message"),
    [
        (GOOD, {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (GOOD, {"sampling": Sampling()}, "key is None"),
        ({}, {}, "inputs need input_ids"),
        ({"input_ids": np.ones((2, 0), int)}, {}, "at least one token"),
        ({"input_ids": np.ones(3, int)}, {}, r"has shape \(3,\): it must be"),
        ({**GOOD, "attention_mask": HOLES}, {}, "row 1 has padding after a token"),
        ({**GOOD, "attention_mask": 0 * HOLES}, {}, "row 0 has no token"),
        ({**GOOD, "attention_mask": HOLES[:1]}, {}, "give one value a token"),
        ({**GOOD, "segment_ids": HOLES}, {}, "inputs has segment_ids"),
    ],
)
def test_bad_prompts_are_refused(variables, inputs, arguments, message):
    arguments = {"max_new_tokens": 2, "sampling": GREEDY, **arguments}
    with pytest.raises(ValueError, match=message):
        generate(NETWORK, variables, inputs, **arguments)


def test_a_network_without_a_cache_is_refused():
    with pytest.raises(ValueError, match=r"unknown tap 'cache'.*generation needs"):
        generate(mlp(4), {}, GOOD, max_new_tokens=2)
