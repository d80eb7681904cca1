"""N:M masks, packing and products, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.kernels.nm_matmul import (
    nm_mask,
    nm_matmul,
    nm_pack,
    nm_unpack,
    reference,
    sr_ste,
    tpu,
    xla,
)
from jaxkd.training.ahead import compile_for, lower_for_gpu


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


pack = jax.jit(nm_pack, static_argnums=(1, 2))
unpack = jax.jit(nm_unpack)


def float64(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (4, 4), (8, 16)])
def test_the_largest_of_each_group_are_kept(n, m):
    weights = normal(0, 3 * m, 5)
    groups = np.abs(np.asarray(weights)).reshape(3, m, 5)
    order = (-groups).argsort(axis=1, kind="stable").argsort(axis=1)
    expected = (order < n).reshape(weights.shape)
    assert (nm_mask(weights, n, m) == expected).all()
    assert (nm_mask(weights.T, n, m, axis=-1) == expected.T).all()
    stacked = jnp.stack([weights, weights])
    assert (nm_mask(stacked, n, m, axis=-2)[1] == expected).all()


def test_of_equals_the_first_are_kept_and_a_score_decides():
    same = jnp.ones((8, 1))
    assert nm_mask(same)[:, 0].tolist() == [True, True, False, False] * 2
    score = jnp.arange(8.0)[:, None]
    assert nm_mask(same, score=score)[:, 0].tolist() == [False, False, True, True] * 2


@functools.partial(jax.jit, static_argnums=(1, 2))
def packed_and_back(weights, n, m, mask):
    return nm_unpack(nm_pack(weights, n, m, mask))


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (4, 8), (8, 16)])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), kept=st.floats(0, 1))
def test_unpacking_gives_back_every_bit(n, m, seed, kept):
    rng = np.random.default_rng(seed)
    # Five groups fill no byte; some keep fewer than n.
    shape = 5 * m, 2
    order = rng.random((5, m, 2)).argsort(axis=1)
    mask = (order < n).reshape(shape) & (rng.random(shape) < kept)
    weights = rng.choice([-2.5, -0.0, 0.0, 1e-42, 3e38], shape).astype(np.float32)
    found = np.asarray(packed_and_back(weights, n, m, mask))
    expected = np.where(mask, weights, np.float32(0))
    assert (found.view(np.uint32) == expected.view(np.uint32)).all()


@pytest.mark.parametrize("places", range(6))
def test_every_pattern_of_2_4_is_exact(places):
    kept = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)][places]
    weights = jnp.zeros((4, 1)).at[list(kept), 0].set(jnp.array([5.0, -7.0]))
    assert (unpack(pack(weights)) == weights).all()


@pytest.mark.parametrize(
    ("dtype", "pattern", "share"),
    [
        (jnp.bfloat16, (2, 4), 9 / 16),
        (jnp.bfloat16, (1, 4), 9 / 32),
        (jnp.bfloat16, (4, 8), 5 / 8),
        (jnp.float32, (2, 4), 17 / 32),
    ],
)
def test_packed_weights_take_the_bytes_that_are_stated(dtype, pattern, share):
    weights = normal(0, 64, 3, dtype=dtype)
    packed = pack(weights, *pattern)
    assert packed.values.nbytes + packed.places.nbytes == share * weights.nbytes


SHAPES = [
    # pattern, inputs, outputs, tokens: places that fill no byte, and beyond a block.
    ((2, 4), 20, 5, 1),
    ((1, 2), 2, 1, 3),
    ((2, 4), 4 * 4 * 130, 515, 3),
    ((4, 8), 24, 7, 259),
]


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "inputs", "outputs", "tokens"), SHAPES)
@pytest.mark.parametrize("version", [reference, xla, tpu])
def test_products_are_those_of_dense_weights(version, pattern, inputs, outputs, tokens):
    interpreted = {"interpret": True} if version is tpu else {}
    x, y = normal(1, tokens, inputs), normal(2, tokens, outputs)
    packed = pack(normal(0, inputs, outputs), *pattern)
    x64, y64, dense = float64(x, y, unpack(packed))
    for found, expected in (
        (version.product(x, packed, **interpreted), x64 @ dense),
        (version.transposed_product(y, packed, **interpreted), y64 @ dense.T),
    ):
        assert found.shape == expected.shape
        error = np.abs(found - expected).max()
        assert error <= 2e-6 * np.abs(expected).max() + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("version", [reference, xla])
def test_the_gradient_of_values_is_what_the_mask_leaves_of_the_dense(version):
    weights, x, y = normal(0, 40, 6), normal(1, 5, 40), normal(2, 5, 6)
    packed = pack(weights, 4, 8)
    found = packed.replace(values=version.values_gradient(x, y, packed))
    x64, y64 = float64(x, y)
    expected = (x64.T @ y64) * np.asarray(nm_mask(weights, 4, 8))
    np.testing.assert_allclose(unpack(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["auto", "reference", "xla"])
def test_gradients_by_jit_are_those_of_masked_dense_weights(implementation, x64):
    weights = normal(0, 24, 3).astype(jnp.float64)
    x = normal(1, 2, 5, 24).astype(jnp.float64)
    packed = pack(weights)

    def sparse(x, values):
        out = nm_matmul(x, packed.replace(values=values), implementation=implementation)
        return jnp.sin(out).sum()

    def dense(x, weights):
        return jnp.sin(x @ (weights * nm_mask(weights))).sum()

    of_x, of_values = jax.jit(jax.grad(sparse, (0, 1)))(x, packed.values)
    expected = jax.grad(dense, (0, 1))(x, weights)
    np.testing.assert_allclose(of_x, expected[0], rtol=1e-10, atol=1e-12)
    of_weights = unpack(packed.replace(values=of_values))
    np.testing.assert_allclose(of_weights, expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_bfloat16_is_summed_in_float32():
    x, weights = (normal(i, 2, 256, dtype=jnp.bfloat16) for i in range(2))
    packed = pack(weights.T)
    x64, dense = float64(x, unpack(packed))
    for version, options in ((reference, {}), (xla, {}), (tpu, {"interpret": True})):
        found = version.product(x, packed, **options)
        assert found.dtype == jnp.bfloat16
        error = np.abs(np.asarray(found, np.float64) - x64 @ dense).max()
        assert error <= 2**-8 * np.abs(x64 @ dense).max()


@pytest.mark.slow
def test_layers_are_scanned_and_mapped():
    packed = jax.vmap(nm_pack)(normal(0, 3, 16, 16))
    x = normal(1, 2, 16)
    scanned, _ = jax.lax.scan(lambda h, w: (nm_matmul(h, w), None), x, packed)
    mapped = jax.vmap(nm_matmul, (None, 0))(x, packed)
    expected = x
    for layer in range(3):
        dense = unpack(jax.tree.map(lambda leaf, i=layer: leaf[i], packed))
        np.testing.assert_allclose(mapped[layer], x @ dense, rtol=1e-5, atol=1e-5)
        expected = expected @ dense
    np.testing.assert_allclose(scanned, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_dropped_weights_decay_and_kept_ones_pass_the_gradient():
    weights, gradient = normal(0, 8, 3), normal(1, 8, 3)
    mask = nm_mask(weights)
    kept, backward = jax.vjp(lambda w: sr_ste(w, mask, 0.5), weights)
    assert (kept == weights * mask).all()
    expected = gradient + 0.5 * ~mask * weights
    np.testing.assert_allclose(backward(gradient)[0], expected, rtol=1e-6)
    plain = jax.jit(jax.grad(lambda w: (sr_ste(w, mask) * gradient).sum()))(weights)
    assert (plain == gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiles_for_tpus_without_a_dense_weight(topology):
    pytest.importorskip("libtpu")
    bf16 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    packed = jax.eval_shape(nm_pack, bf16((1040, 516)))
    x = bf16((300, 1040))
    text = compile_for(topology, nm_matmul, x, packed).as_text() or ""
    assert "tpu_custom_call" in text
    assert "bf16[1040,516]" not in text
    of_x = jax.grad(lambda x, w: nm_matmul(x, w).astype(jnp.float32).sum())
    assert (compile_for(topology, of_x, x, packed).as_text() or "").count(
        "tpu_custom_call"
    )


def test_lowers_for_gpus():
    packed = jax.eval_shape(nm_pack, jax.ShapeDtypeStruct((32, 8), jnp.bfloat16))
    x = jax.ShapeDtypeStruct((4, 32), jnp.bfloat16)
    assert "stablehlo.dot_general" in lower_for_gpu(nm_matmul, x, packed)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_named():
    weights = jnp.ones((8, 2))
    with pytest.raises(ValueError, match="n must be in 1 … m, got n=5 and m=4"):
        nm_mask(weights, 5)
    with pytest.raises(ValueError, match="has 8 entries, which groups of m=3 do not"):
        nm_mask(weights, 2, 3)
    with pytest.raises(ValueError, match="axis is 2, but weights of shape"):
        nm_mask(weights, axis=2)
    with pytest.raises(ValueError, match=r"score has shape \(8, 1\) but weights"):
        nm_mask(weights, score=jnp.ones((8, 1)))
    with pytest.raises(ValueError, match="m must be at most 16 to be packed, got 32"):
        nm_pack(jnp.ones((32, 1)), 2, 32)
    with pytest.raises(ValueError, match="mask keeps 4 of a group of m=4, more than"):
        nm_pack(weights, mask=jnp.ones((8, 2), bool))
    with pytest.raises(ValueError, match=r"mask has shape \(8, 1\) but weights"):
        nm_pack(weights, mask=jnp.ones((8, 1), bool))
    with pytest.raises(ValueError, match=r"x has 4 inputs \(shape \(1, 4\)\) but"):
        nm_matmul(jnp.ones((1, 4)), nm_pack(weights))
    with pytest.raises(ValueError, match="implementation 'gpu'"):
        nm_matmul(jnp.ones((1, 8)), nm_pack(weights), implementation="gpu")
