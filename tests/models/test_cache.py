"""The cache against forwards that read everything at once, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.kernels.attention import attention
from jaxkd.kernels.attention.scores import Scores
from jaxkd.models import llama
from jaxkd.models.language.cache import KVCache, attend

SIZES = {"width": 16, "layers": 2, "heads": 4, "hidden": 24, "kv_heads": 2}
IDS = jax.random.randint(jax.random.key(1), (2, 12), 0, 17)
# The second row is padded before the prompt and in the middle of it.
MASK = jnp.ones((2, 12), int).at[1, jnp.array([0, 1, 5, 6])].set(0)
POSITIONS = jnp.maximum(MASK.cumsum(1) - 1, 0)


def part(start, stop, **more):
    return {
        "input_ids": IDS[:, start:stop],
        "attention_mask": MASK[:, start:stop],
        "position_ids": POSITIONS[:, start:stop],
        **more,
    }


@pytest.fixture(scope="module")
def variables():
    return jax.jit(llama(17, **SIZES).init)(jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"window": 3}, {"scan": False}])
def test_chunks_and_steps_give_the_logits_of_the_whole(variables, changes):
    network = llama(17, **SIZES, **changes)
    forward = jax.jit(lambda v, x: network.apply(v, x, taps=("cache", "block1"))[0])
    outputs = forward(variables, part(0, 5))
    cache, found, states = outputs.features["cache"].grown(9), [], []
    for start, stop in ((5, 8), (8, 9), (9, 10), (10, 12)):
        outputs = forward(variables, part(start, stop, cache=cache))
        cache = outputs.features["cache"]
        found.append(outputs.logits)
        states.append(outputs.features["block1"])
    assert int(cache.length) == 12
    np.testing.assert_array_equal(cache.real[:, :12], MASK > 0)
    for row in range(2):
        real = np.asarray(MASK[row]) > 0
        alone = {"input_ids": IDS[row : row + 1, real]}
        whole = forward(variables, alone)
        late = real[5:]
        for chunks, expected in (
            (found, whole.logits),
            (states, whole.features["block1"]),
        ):
            own = np.concatenate(chunks, axis=1)[row][late]
            np.testing.assert_allclose(own, expected[0, -late.sum() :], atol=1e-5)


@pytest.mark.slow
def test_without_positions_they_count_on(variables):
    network = llama(17, **SIZES)
    whole = network.apply(variables, {"input_ids": IDS})[0].logits
    first, _ = network.apply(variables, {"input_ids": IDS[:, :7]}, taps=("cache",))
    inputs = {"input_ids": IDS[:, 7:], "cache": first.features["cache"].grown(5)}
    np.testing.assert_allclose(
        network.apply(variables, inputs)[0].logits, whole[:, 7:], atol=1e-5
    )


def test_a_step_writes_in_place(variables):
    network = llama(17, **SIZES)

    def step(variables, ids, cache):
        inputs = {"input_ids": ids, "cache": cache}
        return network.apply(variables, inputs, taps=("cache",))[0].features["cache"]

    cache = KVCache.empty(2, 2, 4096, 2, 4)
    run = jax.jit(step, donate_argnums=2).lower(variables, IDS[:, :1], cache).compile()
    copied = [line for line in run.as_text().splitlines() if " copy(" in line]
    assert not [
        line for line in copied if "f32[2,2,2,4096,4]" in line.split("copy(")[0]
    ]
    memory = run.memory_analysis()
    # One layer's keys at a time, and the scores, are smaller than the whole.
    whole = cache.key.nbytes + cache.value.nbytes
    assert memory.alias_size_in_bytes >= whole
    assert memory.temp_size_in_bytes < whole


@pytest.mark.slow
def test_attention_to_slots_is_that_to_keys():
    shapes = ((2, 3, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8))
    query, key, value = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)
    )
    segments = jnp.array([[1, 1, 1, 0, 1, 0, 1], [0] * 7])
    visible = jnp.broadcast_to(segments[:, None] > 0, (2, 3, 7))
    rows = jnp.ones((2, 3), int)
    expected = attention(query, key, value, segment_ids=(rows, segments))
    found = attend(query, key, value, visible)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[1] == 0).all()
    how = {"scale": 0.7, "soft_cap": 1.5, "sinks": jnp.asarray([0.3, 30.0, -1.0, 0.0])}
    capped = attention(query, key, value, segment_ids=(rows, segments), **how)
    scores = Scores(how["scale"], how["soft_cap"])
    again = attend(query, key, value, visible, scores, how["sinks"])
    np.testing.assert_allclose(again, capped, atol=1e-6)
    low = attend(query.astype(jnp.bfloat16), key, value, visible)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(float), expected, atol=0.05)


def test_what_does_not_fit_is_refused(variables):
    cache = KVCache.empty(2, 2, 4, 2, 4)
    with pytest.raises(ValueError, match="4 slots, 0 of them taken: there is no room"):
        cache.admit(jnp.ones((2, 5), bool))
    full = cache.admit(jnp.ones((2, 3), bool)).passed(3)
    with pytest.raises(ValueError, match=r"3 of them taken.*2 more.*cache.grown"):
        full.admit(jnp.ones((2, 2), bool))
    full.grown(1).admit(jnp.ones((2, 2), bool))
    with pytest.raises(ValueError, match="of 2 rows, but the tokens of 3"):
        cache.admit(jnp.ones((3, 1), bool))
    packed = {"input_ids": IDS, "segment_ids": MASK}
    with pytest.raises(ValueError, match="segment_ids with a cache"):
        llama(17, **SIZES).apply(variables, packed, taps=("cache",))
