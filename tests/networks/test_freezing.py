"""Weights that are frozen: the same bit for bit, without gradient or moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxkd import distill
from jaxkd.methods import cross_entropy
from jaxkd.models import cnn, llama
from jaxkd.networks.freezing import all_weights, train_only

NETWORK = llama(17, width=16, layers=2, heads=4, hidden=24, kv_heads=2)
QUERIES = r"blocks\.attention\.query\.kernel"
BATCH = {
    "input_ids": jax.random.randint(jax.random.key(1), (2, 7), 0, 17),
    "label": jax.random.randint(jax.random.key(2), (2, 7), 0, 17),
}


@pytest.mark.slow
def test_a_train_step_changes_only_what_is_named():
    network = train_only(NETWORK.computing_in(jnp.bfloat16), QUERIES)
    program = distill(network, None, cross_entropy(), optax.adam(0.1))
    state = jax.jit(program.init)(jax.random.key(0), BATCH)
    moments = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert moments == [(2, 16, 16)] * 2
    after, metrics = jax.jit(program.step)(state, BATCH)
    assert metrics["grad_norm"] > 0
    before, after = (flatten_dict(all_weights(s.student)) for s in (state, after))
    assert (
        before.keys()
        == flatten_dict(jax.eval_shape(NETWORK.init, jax.random.key(0))).keys()
    )
    changed = {path for path in before if (before[path] != after[path]).any()}
    assert changed == {("params", "blocks", "attention", "query", "kernel")}


@pytest.mark.slow
def test_the_network_is_the_same():
    network = train_only(NETWORK, QUERIES)
    variables = jax.jit(network.init)(jax.random.key(0))
    run = jax.jit(lambda v: network.apply(v, BATCH)[0].logits)
    plain = jax.jit(lambda v: NETWORK.apply(v, BATCH)[0].logits)
    np.testing.assert_array_equal(run(variables), plain(all_weights(variables)))


def test_frozen_weights_may_be_smaller():
    network = train_only(NETWORK, QUERIES, dtype=jnp.bfloat16)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    dtypes = {x.dtype for x in jax.tree.leaves(variables["stats"])}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    assert variables["params"]["blocks"]["attention"]["query"]["kernel"].dtype == "f4"


@pytest.mark.slow
def test_batch_averages_go_on():
    network = train_only(cnn(), r".*kernel")
    variables = network.init(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    _, after = network.apply(variables, image, train=True)
    assert jax.tree.structure(after) == jax.tree.structure(variables)
    old, new = (jax.tree.leaves(v["stats"]["own"]) for v in (variables, after))
    assert len(old)
    assert any((a != b).any() for a, b in zip(old, new, strict=True))


@pytest.mark.slow
def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"pattern '\(' is no regular expression"):
        train_only(NETWORK, "(")
    with pytest.raises(ValueError, match=r"'blocks.query' matches none of the weights"):
        train_only(NETWORK, r"blocks.query").init(jax.random.key(0))
