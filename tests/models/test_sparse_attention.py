"""Sparse attention of encoders: the authors' numbers, dense sums, and memory."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import training
from jaxkd.interop import load_pretrained
from jaxkd.models import bert
from jaxkd.models.language import sparse_attention
from jaxkd.models.language.random_blocks import drawn_blocks
from jaxkd.models.language.sequence import Sequence
from jaxkd.models.language.sparse_attention import (
    BlockSparseAttention,
    SlidingWindowAttention,
    bigbird_attention,
    global_tokens,
)

GOLDEN = "07-efficient_transformer_kd"
HF = Path(__file__).parents[1] / "golden" / "hf"


@pytest.fixture(scope="module")
def authors(load_golden):
    return load_golden(GOLDEN)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4, so that short sequences have many."""
    monkeypatch.setattr(sparse_attention, "LEAST", 4)


def with_golden_weights(module, authors, case, width):
    """Fill a module's projections, and have its output's change nothing."""
    for name in ("query", "key", "value", "query_global", "key_global", "value_global"):
        if hasattr(module, name):
            part = getattr(module, name)
            part.kernel[...] = jnp.asarray(authors[f"{case}/p/{name}.weight"].T)
            part.bias[...] = jnp.asarray(authors[f"{case}/p/{name}.bias"])
    module.out.kernel[...] = jnp.eye(width)
    return module


@pytest.mark.parametrize(
    "case", [pytest.param("longf", marks=pytest.mark.slow), "longf_g"]
)
def test_longformer_is_its_authors(case, authors, small_blocks):
    heads, window = authors[f"{case}/hp_heads_window"].tolist()
    module = SlidingWindowAttention(
        8, heads, 0.1, "auto", window=window, rngs=nnx.Rngs(0)
    )
    module = with_golden_weights(module, authors, case, 8)
    kept = jnp.asarray(~authors[f"{case}/is_masked"])
    everywhere = global_tokens(authors[f"{case}/is_global"], 5)
    positions = jnp.zeros(kept.shape, int)
    tokens = Sequence(positions, kept.astype(int), everywhere=everywhere)

    @jax.jit
    def run(x, cotangent):
        function = lambda x: module(x, tokens)[0] * kept[..., None]  # noqa: E731
        out, pull = jax.vjp(function, x)
        return out, *pull(cotangent)

    found = run(authors[f"{case}/x"], jnp.asarray(authors[f"{case}/cotangent"]))
    for x, name in zip(found, ("out", "dx"), strict=True):
        np.testing.assert_allclose(x, authors[f"{case}/{name}"], rtol=1e-4, atol=2e-5)


def test_bigbird_is_its_authors(authors):
    heads, block, _ = authors["bigb/hp_heads_block_rand"].tolist()
    table = authors["bigb/attn_allowed"][0][:, ::block, ::block]
    blocks = table.shape[-1]
    fixed = [{0, i - 1, i, i + 1, blocks - 1} for i in range(1, blocks - 1)]
    drawn = [
        [[*({*np.flatnonzero(head[i + 1])} - near)] for i, near in enumerate(fixed)]
        for head in table
    ]
    module = BlockSparseAttention(8, heads, 0.1, "auto", block=block, rngs=nnx.Rngs(0))
    module = with_golden_weights(module, authors, "bigb", 8)
    x = jnp.asarray(authors["bigb/x"])
    positions = jnp.zeros(x.shape[:2], int)
    tokens = Sequence(positions, None, random_blocks=jnp.asarray([drawn]))
    found = jax.jit(lambda x: module(x, tokens)[0])(x)
    np.testing.assert_allclose(found, authors["bigb/out"], rtol=1e-4, atol=2e-5)


def test_a_block_that_is_drawn_twice_counts_twice(x64):
    """Also where the last block is part of one, and tokens are padding."""
    block, length, heads = 4, 26, 2
    draw = np.random.default_rng(0)
    query, key, value = draw.normal(size=(3, 2, length, heads, 3))
    segments = (np.arange(length) < [[length], [17]]).astype(int)
    random = draw.integers(0, 7, (heads, 5, 2))
    function = jax.jit(bigbird_attention, static_argnums=3)
    found = function(query, key, value, block, random, segments)
    for b, i, h in np.ndindex(2, length, heads):
        own = i // block
        near = {0, own - 1, own, own + 1, 6}
        drawn = [] if own in (0, 6) else random[h, own - 1].tolist()
        times = np.array(
            [(j in near or own in (0, 6)) + drawn.count(j) for j in range(7)]
        )
        weights = times.repeat(block)[:length] * (segments[b] == segments[b, i])
        weights = weights * np.exp(key[b, :, h] @ query[b, i, h] / 3**0.5)
        expected = weights @ value[b, :, h] / weights.sum()
        np.testing.assert_allclose(found[b, i, h], expected, atol=1e-12)


def test_random_blocks_are_transformers():
    """transformers 5.24 at 15 blocks with seed 1, and its plan for 1,024 tokens."""
    layers = drawn_blocks(60, 4, 2, (2, 2), 64, True)
    assert layers is not None
    assert layers[1, 0, :6].tolist() == [[6, 4], [7, 5], [6, 1], [2, 1], [3, 1], [2, 1]]
    assert layers[1, 1, -3:].tolist() == [[3, 6], [2, 1], [2, 4]]
    planned = drawn_blocks(1024, 64, 3, (1, 2), 4096, True)
    assert planned is not None
    assert planned[0, 1, :3].tolist() == [[6, 11, 10], [8, 4, 12], [12, 11, 10]]
    same = drawn_blocks(1000, 64, 3, (1, 2), 4096, True)
    np.testing.assert_array_equal(planned, same)  # Both have 16 blocks.


def test_few_blocks_see_all_and_evaluation_draws_none():
    assert drawn_blocks(44, 4, 3, (1, 1), 64, True) is None
    found = drawn_blocks(45, 4, 3, (2, 1), 64, False)
    assert found is not None
    assert found.shape == (2, 1, 10, 3)
    assert not found.any()
    with pytest.raises(ValueError, match="random_blocks 3 are more than the 1 to draw"):
        drawn_blocks(4096, 256, 3, (1, 1), 4096, True)


SMALL: dict[str, Any] = {
    "vocabulary": 11,
    "positions": 64,
    "width": 8,
    "layers": 2,
    "heads": 2,
    "hidden": 8,
    "head": "token_classification",
}
FORMS: dict[str, Any] = {
    "sliding_window": {"window": 6},
    "block_sparse": {"block": 4, "random_blocks": 1},
}
IDS = jax.random.randint(jax.random.key(1), (2, 45), 0, 11)
GLOBAL = jnp.zeros_like(IDS).at[:, 3].set(1)
MASK = (jnp.arange(45) < jnp.array([[45], [37]])).astype(int)


def large(network):
    """Random variables, larger than they start, so that everything matters."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype("f4"), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_padding_and_a_mesh_change_nothing(form, small_blocks):
    network = bert(**SMALL, attention=form, **FORMS[form])
    variables = large(network)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "global_attention_mask": GLOBAL}
    run = jax.jit(lambda v, x: network.apply(v, x)[0].logits)
    found = run(variables, inputs)
    changed = {**inputs, "input_ids": jnp.where(MASK, IDS, 7)}
    np.testing.assert_allclose(
        run(variables, changed)[MASK > 0], found[MASK > 0], atol=1e-5
    )
    mesh = training.make_mesh(training.MeshShape(data=2, tensor=2))
    with jax.set_mesh(mesh):
        split = jax.jit(lambda v, x: network.apply(v, x)[0].logits)
        np.testing.assert_allclose(split(variables, inputs), found, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_sees_all_is_full_attention(form, small_blocks):
    wide: dict[str, Any] = {"window": 90} if form == "sliding_window" else {"block": 16}
    network, full = bert(**SMALL, attention=form, **wide), bert(**SMALL)
    variables = large(full)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    expected, _ = full.apply(variables, inputs)
    if form == "sliding_window":
        extra = large(network)["params"]["blocks"]["attention"]
        attention = {**extra, **variables["params"]["blocks"]["attention"]}
        blocks = {**variables["params"]["blocks"], "attention": attention}
        variables = {"params": {**variables["params"], "blocks": blocks}, "stats": {}}
    found, _ = network.apply(variables, inputs)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


def test_training_draws_the_blocks_that_transformers_draws():
    """Evaluation draws none, which `test_bert` compares."""
    network, variables = load_pretrained(HF / "big_bird_sparse")
    expected = dict(np.load(HF / "big_bird_sparse" / "io.npz"))
    inputs = {key: expected[key] for key in ("input_ids", "attention_mask")}
    run = jax.jit(lambda v, x: network.apply(v, x, train=True)[0].logits)
    real = inputs["attention_mask"] > 0
    found, expected = run(variables, inputs)[real], expected["training_logits"][real]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_stays_bfloat16(form, small_blocks):
    network = bert(**SMALL, attention=form, **FORMS[form])
    variables = large(network)
    inputs = {"input_ids": IDS, "global_attention_mask": GLOBAL}
    half = network.computing_in(jnp.bfloat16)
    found, exact = (
        jax.jit(lambda v, x, n=n: n.apply(v, x)[0].logits)(variables, inputs)
        for n in (half, network)
    )
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(float), exact, atol=0.1)


def test_too_many_global_tokens_are_refused():
    network = bert(**SMALL, attention="sliding_window", window=6, global_tokens=2)
    variables = large(network)
    inputs = {
        "input_ids": IDS,
        "global_attention_mask": jnp.zeros_like(IDS).at[1, :3].set(1),
    }
    with pytest.raises(ValueError, match=r"has 3 tokens in a sequence, .* built for 2"):
        network.apply(variables, inputs)
    found = jax.jit(lambda v, x: network.apply(v, x)[0].logits)(variables, inputs)
    assert np.isnan(found).all((1, 2)).tolist() == [False, True]
    assert np.isfinite(found[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_memory_grows_with_the_length(form):
    """Of an attention's gradient, by the compiler; full scores would grow fourfold."""
    sizes = 16, 2, 0.1, "auto"
    if form == "sliding_window":
        module = SlidingWindowAttention(*sizes, window=64, rngs=nnx.Rngs(0))
    else:
        module = BlockSparseAttention(*sizes, block=32, rngs=nnx.Rngs(0))

    def loss(x, segments):
        everywhere, blocks = global_tokens(segments, 8), None
        if form == "block_sparse":
            drawn = drawn_blocks(x.shape[1], 32, 3, (1, 2), 4096, True)
            everywhere, blocks = None, jnp.asarray(drawn)
        return module(x, Sequence(segments, segments, None, everywhere, blocks))[
            0
        ].var()

    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 16), jnp.float32)
        segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
        compiled = jax.jit(jax.grad(loss)).lower(x, segments).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    found = [temporaries(length) for length in (512, 1024, 2048, 4096)]
    assert all(more < 2.2 * less for less, more in itertools.pairwise(found))
    # One head's scores of all pairs alone would take 64 MiB at 4,096 tokens.
    assert found[-1] < 2**24
