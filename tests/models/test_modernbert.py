"""ModernBERT's laws; `test_bert` compares it with transformers' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import training
from jaxkd.models import modernbert

SIZES = (11, 8, 4, 2, 8)
IDS = jax.random.randint(jax.random.key(1), (2, 12), 0, 11)
MASK = (jnp.arange(12) < jnp.array([[12], [7]])).astype(int)
INPUTS = {"input_ids": IDS, "attention_mask": MASK}


@pytest.fixture(scope="module")
def variables():
    """Random ones, larger than they start, so that everything matters."""
    network = modernbert(*SIZES)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype("f4"), shapes)


@pytest.fixture(scope="module")
def forward():
    network = modernbert(*SIZES, window=4, global_every=2)
    taps = ("final", "mean_pooled", "pooled")
    return jax.jit(lambda v, x: network.apply(v, x, taps=taps)[0])


def test_padding_changes_nothing(variables, forward):
    found = forward(variables, INPUTS)
    padding = {**INPUTS, "input_ids": jnp.where(MASK, IDS, 3)}
    changed = forward(variables, padding)
    np.testing.assert_allclose(found.logits, changed.logits, atol=1e-5)
    mean = found.features["final"][1, :7].mean(0)
    np.testing.assert_allclose(found.features["mean_pooled"][1], mean, atol=1e-5)


def test_packed_sequences_do_not_see_one_another(variables, forward):
    segments = jnp.repeat(jnp.arange(2), 6)[None].repeat(2, 0)
    positions = jnp.tile(jnp.arange(6), 2)[None].repeat(2, 0)
    packed = {"input_ids": IDS, "segment_ids": segments, "position_ids": positions}
    found = forward(variables, packed).features["final"]
    other = {**packed, "input_ids": IDS.at[:, 6:].set(0)}
    again = forward(variables, other).features["final"]
    np.testing.assert_allclose(found[:, :6], again[:, :6], atol=1e-5)


def test_a_mesh_and_an_unrolled_loop_change_nothing(variables, forward):
    network = modernbert(*SIZES, window=4, global_every=2, scan=False)
    mesh = training.make_mesh(training.MeshShape(data=2, tensor=2))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda v, x: network.apply(v, x)[0].logits)(variables, INPUTS)
    expected = forward(variables, INPUTS).logits
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_stays_bfloat16(variables, forward):
    network = modernbert(*SIZES, window=4, global_every=2).computing_in(jnp.bfloat16)
    found = jax.jit(lambda v, x: network.apply(v, x)[0].logits)(variables, INPUTS)
    assert found.dtype == jnp.bfloat16
    expected = forward(variables, INPUTS).logits
    np.testing.assert_allclose(found.astype(float), expected, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"head": "sequence_classification", "classes": 3, "pooling": "mean"}, (2, 3)),
        ({"head": "token_classification", "classes": 5}, (2, 12, 5)),
        ({"head": "masked_lm"}, (2, 12, 11)),
        ({"head": None}, None),
    ],
)
def test_heads_have_their_logits(changes, shape):
    network = modernbert(*SIZES, **changes)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    outputs, _ = jax.eval_shape(network.apply, variables, INPUTS)
    assert getattr(outputs.logits, "shape", None) == shape


def test_the_published_size_has_the_published_parameters():
    network = modernbert(50_368, 768, 22, 12, 1152, head=None)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 149_014_272


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 8}, "width 8 must be a multiple of 2 · 8 heads"),
        ({"layers": 1}, "layers must be at least 2, got 1"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_arguments_that_do_not_fit_are_refused(changes, message):
    names = ("vocabulary", "width", "layers", "heads", "hidden")
    with pytest.raises(ValueError, match=message):
        modernbert(**{**dict(zip(names, SIZES, strict=True)), **changes})
