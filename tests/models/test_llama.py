"""The decoder against transformers' logits and hidden states, and its own laws."""

import functools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compression.quantise.mixed_bits import quantized
from jaxkd.interop import load_pretrained
from jaxkd.models import llama
from jaxkd.models.language.rope import RopeScaling, frequencies

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "llama_rope31", "qwen2", "qwen3", "mistral_window", "gemma2"),
        *("gemma3", "olmo2", "smollm3", "granite", "phi3"),
    ],
)
def test_logits_and_hidden_states_are_those_of_transformers(name):
    network, variables = load_pretrained(GOLDEN / name)
    expected = np.load(GOLDEN / name / "io.npz")
    # Transformers' last hidden state is after the norm.
    blocks = [tap for tap in network.taps if re.fullmatch(r"block\d+", tap)]
    taps = ("embed", *blocks[:-1], "final")
    inputs = {key: expected[key] for key in ("input_ids", "attention_mask")}
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(variables, inputs)
    real = expected["attention_mask"] > 0
    np.testing.assert_allclose(
        outputs.logits[real], expected["logits"][real], rtol=1e-4, atol=1e-5
    )
    for i, tap in enumerate(taps):
        np.testing.assert_allclose(
            outputs.features[tap][real],
            expected[f"hidden_{i}"][real],
            rtol=1e-4,
            atol=1e-5,
        )


SMALL = {
    "vocabulary": 17,
    "width": 16,
    "layers": 2,
    "heads": 4,
    "hidden": 24,
    "kv_heads": 2,
}
IDS = jax.random.randint(jax.random.key(1), (2, 7), 0, 17)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(llama(**SMALL).init)(jax.random.key(0))


@functools.cache
def forward(**changes):
    network = llama(**{**SMALL, **changes})
    return jax.jit(lambda v, x: network.apply(v, x)[0].logits)


def logits(variables, inputs, **changes):
    return np.asarray(forward(**changes)(variables, inputs))


def test_a_token_sees_none_after_it(variables):
    changed = IDS.at[:, 4].add(1) % 17
    before, after = (logits(variables, {"input_ids": ids}) for ids in (IDS, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=(0, 2)).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": True}])
def test_the_blocks_are_the_same_however_they_are_compiled(variables, changes):
    def gradient(**changes):
        apply = llama(**{**SMALL, **changes}).apply
        loss = lambda v: apply(v, {"input_ids": IDS})[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    plain, other = gradient(), gradient(**changes)
    chex.assert_trees_all_close(plain, other, rtol=1e-7, atol=1e-6)


def test_a_window_of_one_block_reaches_that_far(variables):
    one = jax.tree.map(lambda x: x, variables)
    one["params"]["blocks"] = jax.tree.map(lambda x: x[:1], one["params"]["blocks"])
    changed = IDS.at[:, 1].add(1) % 17
    before, after = (
        logits(one, {"input_ids": ids}, layers=1, window=3) for ids in (IDS, changed)
    )
    reached = np.abs(before - after).max(axis=(0, 2)) > 1e-7
    assert reached.tolist() == [False, True, True, True, False, False, False]


def test_packed_sequences_do_not_see_one_another(variables):
    packed = {
        "input_ids": jnp.concatenate([IDS[:1], IDS[1:]], axis=1),
        "segment_ids": jnp.repeat(jnp.arange(2), 7)[None],
        "position_ids": jnp.tile(jnp.arange(7), 2)[None],
    }
    both = logits(variables, packed)[0]
    alone = logits(variables, {"input_ids": IDS})
    np.testing.assert_allclose(both, alone.reshape(14, -1), atol=1e-5)


def test_the_head_and_the_last_features_make_the_logits(variables):
    network, taps = llama(**SMALL), ("final", "head", "block1.attn")
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(
        variables, {"input_ids": IDS}
    )
    np.testing.assert_allclose(
        outputs.features["final"] @ outputs.features["head"], outputs.logits, atol=1e-6
    )
    assert outputs.features["block1.attn"].shape == (2, 7, 16)


def test_bfloat16_stays_bfloat16(variables):
    network = llama(**SMALL).computing_in(jnp.bfloat16)
    run = jax.jit(lambda v: network.apply(v, {"input_ids": IDS})[0].logits)
    found = run(variables)
    assert found.dtype == jnp.bfloat16
    exact = logits(variables, {"input_ids": IDS})
    np.testing.assert_allclose(found.astype(float), exact, atol=0.02)


def test_low_frequencies_are_slowed_and_high_ones_kept():
    plain = frequencies(64, 500_000.0)
    scaled = frequencies(64, 500_000.0, RopeScaling())
    assert scaled[0] == plain[0]
    assert scaled[-1] == pytest.approx(plain[-1] / 8)
    assert (np.diff(scaled) < 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "width 18 is no multiple of 4 heads"),
        ({"kv_heads": 3}, "heads 4 must be a multiple of kv_heads 3"),
        ({"head_dim": 3}, "head_dim 3 must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        llama(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": IDS}, "reads a dict with input_ids"),
        ({"input_ids": IDS[0]}, "input_ids must be integers of shape"),
        ({"input_ids": IDS * 1.0}, "input_ids must be integers of shape"),
    ],
)
def test_inputs_that_are_no_tokens_are_refused(variables, inputs, message):
    with pytest.raises(ValueError, match=message):
        llama(**SMALL).apply(variables, inputs)


def test_quantised_blocks_are_close(variables):
    trained = llama(**SMALL).with_variables(variables)
    network = quantized(trained, [(r"blocks\..*\.kernel", "int8")], group=8)
    rounded = jax.jit(network.init)(jax.random.key(0))
    found = logits(rounded, {"input_ids": IDS})
    exact = logits(variables, {"input_ids": IDS})
    assert 0 < np.abs(found - exact).max() < 0.01 * np.abs(exact).max()
