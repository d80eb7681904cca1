"""BERT and its kin against transformers' numbers, and their own laws."""

import functools
import os
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxkd.interop import load_pretrained
from jaxkd.models import bert, create

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
SMALL = {
    "vocabulary": 17,
    "positions": 9,
    "width": 16,
    "layers": 2,
    "heads": 4,
    "hidden": 24,
}
IDS = jax.random.randint(jax.random.key(1), (2, 7), 0, 17)
MASK = jnp.ones((2, 7), int).at[1, 4:].set(0)


TAPS = ("embed", "final", "mean_pooled", "pooled")


@pytest.fixture(scope="module")
def variables():
    """Random ones, larger than they start, so that everything matters."""
    shapes = jax.eval_shape(bert(**SMALL).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype("f4"), shapes)


@functools.cache
def compiled_forward(**changes):
    network = bert(**SMALL, **changes)
    return jax.jit(lambda v, x: network.apply(v, x, taps=TAPS)[0])


def forward(variables, inputs, **changes):
    return compiled_forward(**changes)(variables, inputs)


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        "bert_mlm",
        "bert_tokens",
        "big_bird",
        "big_bird_sparse",
        "distilbert",
        "distilbert_mlm",
        "electra",
        "electra_discriminator",
        "longformer",
        "modernbert",
        "modernbert_mean",
        "roberta",
    ],
)
def test_logits_and_hidden_states_are_those_of_transformers(name):
    network, variables = load_pretrained(GOLDEN / name)
    expected = dict(np.load(GOLDEN / name / "io.npz"))
    blocks = [tap for tap in network.taps if re.fullmatch(r"block\d+", tap)]
    taps = ("embed", *blocks[:-1], "final")
    inputs = {key: expected[key] for key in network.reads if key in expected}
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(variables, inputs)
    real = expected["attention_mask"] > 0
    of_tokens = outputs.logits.shape[:2] == real.shape
    kept = real if of_tokens else ...
    np.testing.assert_allclose(
        outputs.logits[kept], expected["logits"][kept], rtol=1e-4, atol=1e-5
    )
    for i, tap in enumerate(taps):
        np.testing.assert_allclose(
            outputs.features[tap][real],
            expected[f"hidden_{i}"][real],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("first_position", [0, 2])
def test_padding_changes_nothing(variables, first_position):
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    more = {"first_position": first_position}
    padded = forward(variables, inputs, **more)
    alone = forward(variables, {"input_ids": IDS[1:, :4]}, **more)
    np.testing.assert_allclose(padded.logits[1:], alone.logits, atol=1e-5)
    for tap in ("mean_pooled", "pooled"):
        np.testing.assert_allclose(
            padded.features[tap][1:], alone.features[tap], atol=1e-5
        )


def test_positions_of_roberta_are_counted_over_real_tokens(variables):
    before = {
        "input_ids": jnp.pad(IDS[:, :5], ((0, 0), (2, 0))),
        "attention_mask": jnp.pad(jnp.ones((2, 5), int), ((0, 0), (2, 0))),
    }
    after = {
        "input_ids": jnp.pad(IDS[:, :5], ((0, 0), (0, 2))),
        "attention_mask": jnp.pad(jnp.ones((2, 5), int), ((0, 0), (0, 2))),
    }
    found, expected = (
        forward(variables, inputs, first_position=2).features["mean_pooled"]
        for inputs in (before, after)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    rows = {"input_ids": IDS, "position_ids": jnp.tile(jnp.arange(2, 9), (2, 1))}
    given = forward(variables, rows)
    counted = forward(variables, {"input_ids": IDS}, first_position=2)
    np.testing.assert_allclose(given.logits, counted.logits, atol=1e-5)


def test_types_tell_sentences_apart(variables):
    kinds = jnp.zeros_like(IDS).at[:, 4:].set(1)
    plain = forward(variables, {"input_ids": IDS})
    zeros = forward(variables, {"input_ids": IDS, "token_type_ids": kinds * 0})
    np.testing.assert_array_equal(plain.logits, zeros.logits)
    pair = forward(variables, {"input_ids": IDS, "token_type_ids": kinds})
    moved = pair.features["embed"] - plain.features["embed"]
    assert (
        np.abs(moved).max(axis=(0, 2)).astype(bool).tolist() == [False] * 4 + [True] * 3
    )


def test_packed_sequences_do_not_see_one_another(variables):
    packed = {
        "input_ids": IDS.reshape(1, 14),
        "segment_ids": jnp.repeat(jnp.arange(2), 7)[None],
        "position_ids": jnp.tile(jnp.arange(7), 2)[None],
    }
    found = forward(variables, packed).features["final"]
    alone = forward(variables, {"input_ids": IDS}).features["final"]
    np.testing.assert_allclose(found.reshape(alone.shape), alone, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "shape", "pooled"),
    [
        ({"head": "sequence_classification", "classes": 3}, (2, 3), True),
        ({"head": "token_classification", "classes": 5}, (2, 7, 5), False),
        ({"head": "masked_lm"}, (2, 7, 17), False),
        ({"head": "masked_lm", "variant": "big_bird"}, (2, 7, 17), True),
        ({"head": "replaced_tokens", "variant": "electra"}, (2, 7), False),
        ({"head": None}, None, True),
        ({"head": None, "pooler": False}, None, False),
        ({"head": None, "variant": "distilbert", "types": 0}, None, False),
    ],
)
def test_heads_have_their_logits(changes, shape, pooled):
    network = bert(**SMALL, **changes)
    assert ("pooled" in network.taps) == pooled
    variables = jax.eval_shape(network.init, jax.random.key(0))
    outputs, _ = jax.eval_shape(network.apply, variables, {"input_ids": IDS})
    assert getattr(outputs.logits, "shape", None) == shape


@pytest.mark.slow
def test_every_weight_of_a_classifier_is_trained(variables):
    network = bert(**SMALL, scan=False)
    scanned = bert(**SMALL, remat=True)
    inputs = {"input_ids": IDS, "attention_mask": MASK}

    def gradient(network):
        loss = lambda v: network.apply(v, inputs)[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)["params"]

    unrolled, rolled = gradient(network), gradient(scanned)
    chex.assert_trees_all_close(unrolled, rolled, rtol=1e-7, atol=1e-5)
    # A key's bias moves all of a query's scores, which changes nothing.
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(unrolled)
        if np.abs(leaf).max() < 1e-6
    ]
    assert still == ["['blocks']['attention']['key']['bias']"]


def test_bfloat16_stays_bfloat16(variables):
    network = bert(**SMALL).computing_in(jnp.bfloat16)
    run = jax.jit(lambda v, x: network.apply(v, x, taps=("mean_pooled",))[0])
    found = run(variables, {"input_ids": IDS})
    assert found.logits.dtype == found.features["mean_pooled"].dtype == jnp.bfloat16
    exact = forward(variables, {"input_ids": IDS})
    np.testing.assert_allclose(found.logits.astype(float), exact.logits, atol=0.05)


DISTILBERT = {
    "vocabulary": 30_522,
    "positions": 512,
    "layers": 6,
    "types": 0,
    "variant": "distilbert",
}


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        ({"vocabulary": 30_522, "positions": 512}, 109_482_240),
        ({"vocabulary": 50_265, "positions": 514, "types": 1}, 124_645_632),
        (DISTILBERT, 66_362_880),
    ],
)
def test_the_published_sizes_have_the_published_parameters(sizes, parameters):
    base = {"width": 768, "layers": 12, "heads": 12, "hidden": 3072, "head": None}
    network = bert(**{**base, **sizes})
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


def test_a_new_head_takes_over_a_trained_encoder():
    encoder, trained = load_pretrained(GOLDEN / "bert", head=None)
    assert encoder.spec is not None
    name, arguments = encoder.spec
    head = {"head": "sequence_classification", "classes": 5}
    network = create(name, **{**arguments, **head})
    fresh = jax.eval_shape(network.init, jax.random.key(0))
    params = {**fresh["params"], **trained["params"]}
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(lambda x: x.shape, fresh["params"])
    assert set(fresh["params"]) - set(trained["params"]) == {"head"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "width 18 must be a multiple of the 4 heads"),
        ({"head": "mlm"}, "unknown head 'mlm'"),
        ({"variant": "albert"}, "unknown variant 'albert'"),
        ({"attention": "sparse"}, "unknown attention 'sparse'"),
        ({"window": 7}, "window 7 must be even"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        bert(**{**SMALL, **changes})


def test_more_tokens_than_positions_are_refused(variables):
    ids = jnp.zeros((1, 8), int)
    for first, room in ((0, 9), (2, 7)):
        network = bert(**SMALL, first_position=first)
        inputs = {"input_ids": jnp.zeros((1, room + 1), int)}
        with pytest.raises(ValueError, match=f"but this model knows {room} positions"):
            network.apply(variables, inputs)
    assert bert(**SMALL).apply(variables, {"input_ids": ids})[0].logits.shape == (1, 2)


MINILM = os.environ.get("JAXKD_MINILM")


@pytest.mark.skipif(
    not MINILM, reason="JAXKD_MINILM names no folder of all-MiniLM-L6-v2"
)
def test_published_sentences_are_as_alike_as_published():
    """all-MiniLM-L6-v2 on the first example of sentence-transformers' documentation."""
    network, variables = load_pretrained(str(MINILM))
    tokenizer = Tokenizer.from_file(f"{MINILM}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(
        [
            "The weather is lovely today.",
            "It's so sunny outside!",
            "He drove to the stadium.",
        ]
    )
    inputs = {
        "input_ids": np.array([tokens.ids for tokens in found]),
        "attention_mask": np.array([tokens.attention_mask for tokens in found]),
    }
    outputs, _ = network.apply(variables, inputs, taps=("mean_pooled",))
    means = outputs.features["mean_pooled"]
    means = means / jnp.linalg.norm(means, axis=-1, keepdims=True)
    expected = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(means @ means.T, expected, atol=1e-4)
