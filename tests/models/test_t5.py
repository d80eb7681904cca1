"""T5 against transformers' numbers, and its own laws."""

import functools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.generation import GREEDY, generate
from jaxkd.interop import load_pretrained
from jaxkd.models import t5

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
SMALL = {
    "vocabulary": 17,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "hidden": 24,
    "head_dim": 8,
    "buckets": 8,
    "max_distance": 9,
}
SOURCE = jax.random.randint(jax.random.key(1), (2, 6), 0, 17)
TARGET = jax.random.randint(jax.random.key(2), (2, 12), 0, 17)
MASK = jnp.ones_like(SOURCE).at[1, 4:].set(0)
INPUTS = {
    "input_ids": SOURCE,
    "attention_mask": MASK,
    "decoder_input_ids": TARGET,
}


@functools.cache
def checkpoint(name):
    network, variables = load_pretrained(GOLDEN / name)
    return network, variables, dict(np.load(GOLDEN / name / "io.npz"))


def by_tap(name, network, expected):
    """Return transformers' hidden states by our taps; the last is after the norm."""
    found = {}
    if name == "t5":
        return {"encoder.final": expected["encoder_last_hidden_state"]}
    for stack, prefix in (("encoder", "encoder."), ("decoder", "")):
        pattern = rf"{re.escape(prefix)}block\d+"
        blocks = [tap for tap in network.taps if re.fullmatch(pattern, tap)]
        taps = (f"{prefix}embed", *blocks[:-1], f"{prefix}final")
        for i, tap in enumerate(taps):
            found[tap] = expected[f"{stack}_hidden_{i}"]
    return found


@pytest.mark.parametrize("name", ["t5", "t5_relu", "t5_untied"])
def test_logits_and_hidden_states_are_those_of_transformers(name):
    network, variables, expected = checkpoint(name)
    hidden = by_tap(name, network, expected)
    names = "input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"
    inputs = {key: expected[key] for key in names if key in expected}
    run = jax.jit(lambda v, x: network.apply(v, x, taps=tuple(hidden))[0])
    outputs = run(variables, inputs)
    # A token of padding before the text sees nothing: what it makes is nobody's.
    real = inputs.get("decoder_attention_mask", np.ones((2, 7))) > 0
    np.testing.assert_allclose(
        outputs.logits[real], expected["logits"][real], rtol=1e-4, atol=2e-5
    )
    for tap, state in hidden.items():
        rows = inputs["attention_mask"] > 0 if tap.startswith("encoder") else real
        # Rounding grows with the stream, which is not the same for all features.
        scale = np.abs(state).max()
        np.testing.assert_allclose(
            outputs.features[tap][rows], state[rows], rtol=1e-5, atol=1e-5 * scale
        )


@pytest.mark.parametrize("name", ["t5", "t5_relu", "t5_untied"])
def test_greedy_generations_are_those_of_transformers(name):
    network, variables, expected = checkpoint(name)
    rows, length = expected["generated"].shape
    inputs = {
        "input_ids": expected["input_ids"][:rows],
        "attention_mask": expected["attention_mask"][:rows],
        "decoder_input_ids": expected["generated"][:, :1],
    }
    found = generate(
        network, variables, inputs, max_new_tokens=length - 1, sampling=GREEDY
    )
    np.testing.assert_array_equal(found.tokens, expected["generated"][:, 1:])


@pytest.fixture(scope="module")
def variables():
    start = jax.jit(t5(**SMALL).init)(jax.random.key(0))
    # How near tokens are counts little in a fresh model.
    for stack in ("encoder", "decoder"):
        relative = start["params"][stack]["relative"]
        relative["embedding"] = 8 * relative["embedding"]
    return start


@functools.cache
def forward(taps=("cache",), **changes):
    network = t5(**{**SMALL, **changes})
    return jax.jit(lambda v, x: network.apply(v, x, taps=taps)[0])


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(1, *[1] * 11), (4, 8)])
def test_an_output_read_in_parts_is_read_as_a_whole(variables, parts):
    whole = forward(())(variables, INPUTS).logits
    first = {**INPUTS, "decoder_input_ids": TARGET[:, : parts[0]]}
    outputs = forward()(variables, first)
    logits, start = [outputs.logits], parts[0]
    cache = outputs.features["cache"].grown(12 - start)
    for length in parts[1:]:
        tokens = TARGET[:, start : start + length]
        # Only new tokens are given: the encoder's text is known.
        outputs = forward()(variables, {"decoder_input_ids": tokens, "cache": cache})
        cache, start = outputs.features["cache"], start + length
        logits.append(outputs.logits)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, atol=1e-4)


def test_padding_before_an_output_leaves_no_trace(variables):
    ids = jnp.pad(TARGET, ((0, 0), (3, 0)), constant_values=5)
    mask = jnp.pad(jnp.ones_like(TARGET), ((0, 0), (3, 0)))
    inputs = {**INPUTS, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    alone = forward(())(variables, INPUTS).logits
    for taps in ((), ("cache",)):
        found = forward(taps)(variables, inputs).logits
        np.testing.assert_allclose(found[:, 3:], alone, atol=1e-4)


def test_padding_of_the_source_is_not_seen(variables):
    changed = {**INPUTS, "input_ids": SOURCE.at[1, 4:].add(1) % 17}
    found = [forward(())(variables, inputs).logits for inputs in (INPUTS, changed)]
    np.testing.assert_array_equal(*found)
    bare = {name: x for name, x in changed.items() if name != "attention_mask"}
    assert np.abs(forward(())(variables, bare).logits - found[0])[1].max() > 1e-3


def test_a_token_sees_none_after_it_in_the_output_and_all_of_the_source(variables):
    before = np.asarray(forward(())(variables, INPUTS).logits)
    output = {**INPUTS, "decoder_input_ids": TARGET.at[:, 4].add(1) % 17}
    after = np.asarray(forward(())(variables, output).logits)
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert np.abs(before[:, 4:] - after[:, 4:]).max(axis=(0, 2)).min() > 1e-4
    source = {**INPUTS, "input_ids": SOURCE.at[:, 3].add(1) % 17}
    after = np.asarray(forward(())(variables, source).logits)
    assert np.abs(before - after).max(axis=-1).min() > 1e-4


@pytest.mark.slow
def test_the_blocks_are_the_same_however_they_are_compiled():
    sizes = {**SMALL, "feed_forward": "gated-gelu", "tied": False, "layers": 1}
    start = jax.jit(t5(**sizes).init)(jax.random.key(0))

    def gradient(**changes):
        apply = t5(**{**sizes, **changes}).apply
        loss = lambda v: apply(v, INPUTS)[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(start)

    plain, other = gradient(), gradient(scan=False, remat=True)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(plain))
    chex.assert_trees_all_close(plain, other, rtol=1e-4, atol=1e-5)


def test_features_of_both_stacks_have_their_shapes(variables):
    taps = t5(**SMALL, decoder_layers=2).taps
    assert "block1.cross" in taps
    assert "encoder.block1.cross" not in taps
    kept = {**INPUTS, "logits_to_keep": jnp.asarray([11])}
    outputs = forward(taps)(variables, kept)
    features = outputs.features
    assert features["encoder.block1.attn"].shape == (2, 6, 16)
    assert features["block1.cross"].shape == (2, 12, 16)
    np.testing.assert_allclose(
        features["final"] @ features["head"], outputs.logits, atol=1e-5
    )
    whole = forward(())(variables, INPUTS).logits
    np.testing.assert_allclose(outputs.logits, whole[:, 11:], atol=1e-5)


def test_bfloat16_is_close(variables):
    network = t5(**SMALL).computing_in(jnp.bfloat16)
    run = jax.jit(lambda v: network.apply(v, INPUTS)[0].logits)
    found = run(variables)
    assert found.dtype == jnp.bfloat16
    exact = forward(())(variables, INPUTS).logits
    scale = np.abs(exact).max()
    np.testing.assert_allclose(found.astype(float), exact, atol=0.05 * scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward": "gelu"}, "feed_forward must be 'relu' or 'gated-gelu'"),
        ({"buckets": 2}, "at least 2 buckets for one direction"),
        ({"max_distance": 2}, "fewer than max_distance 2, got 4"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked_shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        t5(**{**SMALL, **changes})


@pytest.mark.slow
def test_wrong_inputs_are_refused(variables):
    apply = functools.partial(t5(**SMALL).apply, variables)
    with pytest.raises(ValueError, match=r"reads a dict with decoder_input_ids"):
        apply({"input_ids": SOURCE})
    with pytest.raises(ValueError, match=r"reads a dict with input_ids"):
        apply({"decoder_input_ids": TARGET})
    with pytest.raises(ValueError, match="decoder_input_ids must be integers of shape"):
        apply({**INPUTS, "decoder_input_ids": TARGET[0]})
    with pytest.raises(ValueError, match="T5 reads no packed sequences"):
        apply({**INPUTS, "segment_ids": MASK})
    first = {**INPUTS, "decoder_input_ids": TARGET[:, :4]}
    cache = forward()(variables, first).features["cache"]
    later = {"decoder_input_ids": TARGET[:, :1], "cache": cache}
    with pytest.raises(ValueError, match="no room for 1 more tokens"):
        apply(later)
    with pytest.raises(ValueError, match=r"'encoder.final' with a cache: the encoder"):
        apply({**later, "cache": cache.grown(1)}, taps=("encoder.final",))
