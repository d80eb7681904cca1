"""Mamba-2 against transformers' numbers, and its own laws."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.generation import GREEDY, generate
from jaxkd.interop import load_pretrained
from jaxkd.models import mamba2

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
SMALL = {"vocabulary": 17, "width": 16, "layers": 2, "head_dim": 8, "state_size": 4}
IDS = jax.random.randint(jax.random.key(1), (2, 7), 0, 17)


@functools.cache
def checkpoint(name):
    network, variables = load_pretrained(GOLDEN / name)
    return network, variables, dict(np.load(GOLDEN / name / "io.npz"))


@pytest.mark.parametrize("name", ["mamba2", "mamba2_padded"])
def test_logits_and_hidden_states_are_those_of_transformers(name):
    network, variables, expected = checkpoint(name)
    # Transformers keeps what comes out of blocks, the last of it after the norm.
    taps = ("block0", "block1", "final")
    names = ("input_ids", "attention_mask")
    inputs = {key: expected[key] for key in names if key in expected}
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(variables, inputs)
    np.testing.assert_allclose(outputs.logits, expected["logits"], rtol=1e-4, atol=1e-5)
    for i, tap in enumerate(taps):
        np.testing.assert_allclose(
            outputs.features[tap], expected[f"hidden_{i}"], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ["mamba2", "mamba2_padded"])
def test_greedy_generations_are_those_of_transformers(name):
    network, variables, expected = checkpoint(name)
    inputs = {"input_ids": expected.get("prompt", expected["input_ids"])}
    if "attention_mask" in expected:
        inputs["attention_mask"] = expected["attention_mask"]
    length = inputs["input_ids"].shape[1]
    found = generate(
        *(network, variables, inputs),
        max_new_tokens=expected["generated"].shape[1] - length,
        sampling=GREEDY,
    )
    np.testing.assert_array_equal(found.tokens, expected["generated"][:, length:])


@pytest.fixture(scope="module")
def variables():
    start = jax.jit(mamba2(**SMALL).init)(jax.random.key(0))
    # Logits of a fresh model are almost equal.
    return jax.tree.map(lambda x: 6 * x if x.ndim > 2 else x, start)


@functools.cache
def forward(**changes):
    network = mamba2(**{**SMALL, **changes})
    return jax.jit(lambda v, x: network.apply(v, x, taps=("cache",))[0])


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(3, 1, 1, 1, 1), (1, 2, 4)])
def test_a_text_read_in_parts_is_read_as_a_whole(variables, parts):
    whole = forward()(variables, {"input_ids": IDS})
    cache, start, logits = None, 0, []
    for length in parts:
        inputs = {"input_ids": IDS[:, start : start + length]}
        if cache is not None:
            inputs["cache"] = cache.grown(length)
        outputs = forward()(variables, inputs)
        cache, start = outputs.features["cache"], start + length
        logits.append(outputs.logits)
    joined = np.concatenate(logits, axis=1)
    np.testing.assert_allclose(joined, whole.logits, atol=1e-5)
    chex.assert_trees_all_close(cache, whole.features["cache"], rtol=1e-7, atol=1e-5)


def test_padding_before_a_text_leaves_no_trace(variables):
    padded = jnp.pad(IDS, ((0, 0), (5, 0)), constant_values=3)
    mask = jnp.pad(jnp.ones_like(IDS), ((0, 0), (5, 0)))
    inputs = {"input_ids": padded, "attention_mask": mask}
    found = forward()(variables, inputs)
    alone = forward()(variables, {"input_ids": IDS})
    np.testing.assert_allclose(found.logits[:, 5:], alone.logits, atol=1e-5)
    chex.assert_trees_all_close(
        found.features["cache"], alone.features["cache"], rtol=1e-7, atol=1e-5
    )


def test_packed_texts_do_not_see_one_another(variables):
    packed = {
        "input_ids": IDS.reshape(1, 14),
        "segment_ids": jnp.repeat(jnp.arange(2), 7)[None],
    }
    both = forward()(variables, packed).logits[0]
    alone = forward()(variables, {"input_ids": IDS}).logits
    np.testing.assert_allclose(both, alone.reshape(14, -1), atol=1e-5)
    mixed = forward()(variables, {"input_ids": packed["input_ids"]}).logits[0]
    assert np.abs(mixed[7:] - both[7:]).max() > 1e-3


def test_a_token_sees_none_after_it(variables):
    changed = IDS.at[:, 4].add(1) % 17
    before, after = (
        np.asarray(forward()(variables, {"input_ids": ids}).logits)
        for ids in (IDS, changed)
    )
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert np.abs(before[:, 4:] - after[:, 4:]).max(axis=(0, 2)).min() > 1e-4


@pytest.mark.slow
def test_the_blocks_are_the_same_however_they_are_compiled(variables):
    def gradient(**changes):
        apply = mamba2(**{**SMALL, **changes}).apply
        loss = lambda v: apply(v, {"input_ids": IDS})[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    plain, other = gradient(), gradient(scan=False, remat=True)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(plain))
    chex.assert_trees_all_close(plain, other, rtol=1e-4, atol=1e-6)


def test_the_head_and_the_last_features_make_the_logits(variables):
    network, taps = mamba2(**SMALL), ("final", "head", "embed", "block1.mixer")
    inputs = {"input_ids": IDS, "logits_to_keep": jnp.asarray([6])}
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(variables, inputs)
    found = outputs.features
    np.testing.assert_allclose(
        found["final"] @ found["head"], outputs.logits, atol=1e-6
    )
    whole = forward()(variables, {"input_ids": IDS})
    np.testing.assert_allclose(outputs.logits, whole.logits[:, 6:], atol=1e-5)
    assert found["embed"].shape == found["block1.mixer"].shape == (2, 7, 16)


def test_bfloat16_keeps_the_states_and_the_residual_stream_in_float32(variables):
    network = mamba2(**SMALL).astype(jnp.bfloat16)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    taps = ("cache", "block1")
    run = jax.jit(lambda v, x: network.apply(v, x, taps=taps)[0])
    first = run(low, {"input_ids": IDS[:, :6]})
    inputs = {"input_ids": IDS[:, 6:], "cache": first.features["cache"]}
    outputs = run(low, inputs)
    assert outputs.logits.dtype == jnp.bfloat16
    assert outputs.features["cache"].state.dtype == jnp.float32
    assert outputs.features["block1"].dtype == jnp.float32
    exact = forward()(variables, {"input_ids": IDS}).logits[:, 6:]
    scale = np.abs(exact).max()
    np.testing.assert_allclose(outputs.logits.astype(float), exact, atol=0.05 * scale)


def test_time_steps_stay_within_their_limits(variables):
    def with_bias(bias):
        changed = jax.tree.map(lambda x: x, variables)
        changed["params"]["blocks"]["mixer"]["time_bias"] = jnp.full((2, 4), bias)
        return changed

    high, low = with_bias(50.0), with_bias(0.0)
    one = {"time_step_limit": (1.0, 1.0)}
    found = [forward(**one)(v, {"input_ids": IDS}).logits for v in (high, low)]
    np.testing.assert_array_equal(*found)
    free = [forward()(v, {"input_ids": IDS}).logits for v in (high, low)]
    assert np.abs(free[0] - free[1]).max() > 1e-3


def test_heads_are_as_many_as_make_twice_the_width():
    shape = jax.eval_shape(mamba2(**SMALL).init, jax.random.key(0))
    assert shape["params"]["blocks"]["mixer"]["skip"].shape == (2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 15}, "width 15 twice is no multiple of head_dim 8: give heads"),
        ({"groups": 3}, "heads 4 must be a multiple of groups 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mamba2(**{**SMALL, **changes})


def test_inputs_that_are_no_tokens_are_refused(variables):
    with pytest.raises(ValueError, match="reads a dict with input_ids"):
        mamba2(**SMALL).apply(variables, {"image": IDS})
