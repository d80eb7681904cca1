"""Caches of 8 bits: what rounding costs, and generation from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compression.kv_cache import with_quantized_cache
from jaxkd.generation import GREEDY, generate
from jaxkd.models import llama, mamba2
from jaxkd.models.language.cache import KVCache, dequantize_kv, quantize_kv

NETWORK = llama(29, width=16, layers=2, heads=4, hidden=24, kv_heads=2)
IDS = jax.random.randint(jax.random.key(1), (2, 9), 0, 29)
KINDS = [jnp.float8_e4m3fn, jnp.int8]


@pytest.fixture(scope="module")
def variables():
    return jax.jit(NETWORK.init)(jax.random.key(0))


@pytest.mark.parametrize("dtype", KINDS)
def test_rounding_is_within_half_a_step(dtype):
    x = 3 * jax.random.normal(jax.random.key(0), (4, 5, 2, 8))
    codes, scale = quantize_kv(x, dtype)
    assert codes.dtype == dtype
    found = dequantize_kv(codes, scale)
    if dtype == jnp.int8:
        np.testing.assert_allclose(found, x, atol=0.5001 * float(scale))
    else:
        # 3 bits after the leading one: at most 1/16 of the number.
        smallest = 2.0**-9 * float(scale)
        np.testing.assert_allclose(found, x, rtol=1 / 16, atol=smallest)
    np.testing.assert_allclose(jnp.abs(found).max(), jnp.abs(x).max(), rtol=1e-6)
    assert (dequantize_kv(*quantize_kv(jnp.zeros(3), dtype)) == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", KINDS)
def test_later_tokens_see_a_rounded_cache(variables, dtype):
    def logits(network):
        first, _ = network.apply(variables, {"input_ids": IDS[:, :8]}, taps=("cache",))
        cache = first.features["cache"].grown(1)
        inputs = {"input_ids": IDS[:, 8:], "cache": cache}
        found, _ = network.apply(variables, inputs, taps=("cache",))
        return found.logits, found.features["cache"]

    exact, plain = logits(NETWORK)
    rounded, cache = logits(with_quantized_cache(NETWORK, dtype))
    assert cache.key.dtype == dtype
    assert cache.key.nbytes * 4 == plain.key.nbytes
    for whole, eighth in zip(plain.layer(1), cache.layer(1), strict=True):
        largest = float(jnp.abs(whole).max())
        np.testing.assert_allclose(eighth[:, :8], whole[:, :8], atol=0.07 * largest)
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.02


def test_larger_values_are_clipped_to_the_prompts():
    cache = KVCache.empty(1, 1, 2, 1, 4).admit(jnp.ones((1, 1), bool))
    small, large = jnp.full((1, 1, 1, 4), 2.0), jnp.full((1, 1, 1, 4), -50.0)
    cache = cache.put(0, small, small).passed(1).quantized(jnp.int8)
    cache = cache.admit(jnp.ones((1, 1), bool)).put(0, large, large)
    np.testing.assert_allclose(cache.layer(0)[0][0, :, 0, 0], [2.0, -2.0], rtol=1e-6)


def test_generation_runs_from_it(variables):
    network = with_quantized_cache(NETWORK.computing_in(jnp.bfloat16), jnp.int8)
    found = generate(
        *(network, variables, {"input_ids": IDS}), max_new_tokens=4, sampling=GREEDY
    )
    assert found.mask.all()
    assert np.isfinite(found.log_probs).all()


@pytest.mark.slow
def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(ValueError, match="x must be of floats, got int32"):
        quantize_kv(jnp.arange(3))
    with pytest.raises(ValueError, match="dtype must have 8 bits"):
        quantize_kv(jnp.ones(3), jnp.bfloat16)
    other = mamba2(29, 16, 1, heads=4, head_dim=8, state_size=4)
    network = with_quantized_cache(other, jnp.int8)
    with pytest.raises(ValueError, match="cache is a RecurrentCache"):
        network.apply(
            network.init(jax.random.key(0)), {"input_ids": IDS}, taps=("cache",)
        )
