"""GPT-2 against transformers' logits, hidden states and text, and its own laws."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.generation import GREEDY, generate
from jaxkd.interop import load_pretrained
from jaxkd.models import gpt2

GOLDEN = Path(__file__).parents[1] / "golden" / "hf" / "gpt2"
SMALL = {"vocabulary": 17, "positions": 12, "width": 16, "layers": 2, "heads": 4}
IDS = jax.random.randint(jax.random.key(1), (2, 7), 0, 17)


@functools.cache
def forward():
    network = gpt2(**SMALL)
    return jax.jit(lambda v, x: network.apply(v, x)[0].logits)


@pytest.fixture(scope="module")
def golden():
    return load_pretrained(GOLDEN), dict(np.load(GOLDEN / "io.npz"))


@pytest.fixture(scope="module")
def variables():
    return jax.jit(gpt2(**SMALL).init)(jax.random.key(0))


@pytest.mark.slow
def test_logits_and_hidden_states_are_those_of_transformers(golden):
    (network, variables), expected = golden
    taps = ("embed", "block0", "block1", "final", "head")
    inputs = {key: expected[key] for key in ("input_ids", "attention_mask")}
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(variables, inputs)
    real = expected["attention_mask"] > 0
    np.testing.assert_allclose(
        outputs.logits[real], expected["logits"][real], rtol=1e-4, atol=1e-5
    )
    for i, tap in enumerate(taps[:-1]):
        np.testing.assert_allclose(
            outputs.features[tap][real],
            expected[f"hidden_{i}"][real],
            rtol=1e-4,
            atol=1e-5,
        )
    final, head = outputs.features["final"], outputs.features["head"]
    np.testing.assert_allclose(final @ head, outputs.logits, atol=1e-5)


def test_it_writes_what_transformers_writes(golden):
    (network, variables), expected = golden
    prompt, text = expected["prompt"], expected["generated"]
    new = text.shape[1] - prompt.shape[1]
    # Beside a longer prompt, so that this one is padded.
    ids = np.pad(prompt, ((1, 0), (2, 0)))
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    made = generate(network, variables, inputs, max_new_tokens=new, sampling=GREEDY)
    assert made.tokens[1].tolist() == text[0, -new:].tolist()


@pytest.mark.slow
def test_the_blocks_are_the_same_however_they_are_compiled(variables):
    def gradient(**changes):
        apply = gpt2(**SMALL, **changes).apply
        loss = lambda v: apply(v, {"input_ids": IDS})[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    plain, other = gradient(scan=False), gradient(remat=True)
    chex.assert_trees_all_close(plain, other, rtol=1e-7, atol=1e-6)
    assert np.abs(plain["params"]["positions"]["embedding"]).max() > 0


def test_padding_before_a_sequence_changes_nothing(variables):
    alone = forward()(variables, {"input_ids": IDS})
    mask = jnp.repeat(jnp.arange(9) >= 2, 2).reshape(9, 2).T.astype(int)
    padded = {
        "input_ids": jnp.pad(IDS, ((0, 0), (2, 0))),
        "attention_mask": mask,
        "position_ids": jnp.maximum(mask.cumsum(1) - 1, 0),
    }
    found = forward()(variables, padded)
    np.testing.assert_allclose(found[:, 2:], alone, atol=1e-5)


def test_packed_sequences_do_not_see_one_another(variables):
    packed = {
        "input_ids": IDS.reshape(1, 14),  # Longer than the table of positions.
        "segment_ids": jnp.repeat(jnp.arange(2), 7)[None],
        "position_ids": jnp.tile(jnp.arange(7), 2)[None],
    }
    alone = forward()(variables, {"input_ids": IDS})
    found = forward()(variables, packed)
    np.testing.assert_allclose(found.reshape(2, 7, 17), alone, atol=1e-5)


def test_bfloat16_stays_bfloat16_and_a_head_of_its_own_is_used(variables):
    network = gpt2(**SMALL, tied=False)
    params = {**variables["params"], "head": {"kernel": jnp.ones((16, 17))}}
    low = network.computing_in(jnp.bfloat16)
    run = jax.jit(lambda v: low.apply(v, {"input_ids": IDS}, taps=("block1.attn",))[0])
    outputs = run({**variables, "params": params})
    assert outputs.logits.dtype == jnp.bfloat16
    assert outputs.features["block1.attn"].shape == (2, 7, 16)
    assert (outputs.logits == outputs.logits[..., :1]).all()


def test_it_starts_with_a_stream_of_the_same_variance(variables):
    mlp = variables["params"]["blocks"]["mlp"]
    up, down = (np.std(mlp[name]["kernel"]) for name in ("up", "down"))
    assert up == pytest.approx(0.02, rel=0.1)
    assert down == pytest.approx(0.01, rel=0.1)


@pytest.mark.slow
def test_more_tokens_than_positions_are_refused(variables):
    network = gpt2(**SMALL)
    with pytest.raises(ValueError, match="is 14 tokens long, but this model knows 12"):
        network.apply(variables, {"input_ids": IDS.reshape(1, 14)})
    first, _ = network.apply(variables, {"input_ids": IDS}, taps=("cache",))
    inputs = {"input_ids": IDS[:, :1], "cache": first.features["cache"].grown(6)}
    with pytest.raises(ValueError, match="with its cache, is 13 tokens long"):
        network.apply(variables, inputs)


def test_the_published_size_has_the_published_parameters():
    network = gpt2(50_257, 1024, 768, 12, 12)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 124_439_808


def test_heads_that_do_not_share_the_width_are_refused():
    with pytest.raises(ValueError, match="width 18 must be a multiple of the 4 heads"):
        gpt2(**{**SMALL, "width": 18})
