"""Rounding and products of few bits, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.kernels.quant_matmul import (
    dequantize,
    fake_quantize,
    pack_ternary,
    quant_matmul,
    quantize,
    unpack_ternary,
)
from jaxkd.training.ahead import compile_for, lower_for_gpu

BITS = {"int8": 8, "int4": 4, "int2": 2}
CASES = [
    ("int8", None, True),
    ("int8", 5, False),
    ("int4", 15, True),
    ("int4", 5, False),
    ("int2", 5, True),
    ("int2", None, False),
    ("ternary", 5, True),
    ("fp8", 15, True),
]


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def multiplied_out(weights):
    """Return the weights in float64, code by code."""
    codes, scale = (np.asarray(x, np.float64) for x in (weights.codes, weights.scale))
    zero = 0 if weights.zero is None else np.asarray(weights.zero, np.float64)
    group = len(codes) // len(scale)
    out = np.zeros(codes.shape)
    for i in range(len(codes)):
        offset = 0 if weights.zero is None else zero[i // group]
        out[i] = scale[i // group] * (codes[i] - offset)
    return out


def grid(weights, bits, symmetric):
    """Return a group's rounded weights, by the formulas of GPTQ's code."""
    low, high = min(weights.min(), 0), max(weights.max(), 0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    scale = (high - low) / (2**bits - 1)
    zero = 2 ** (bits - 1) if symmetric else np.round(-low / scale)
    return scale * (np.clip(np.round(weights / scale) + zero, 0, 2**bits - 1) - zero)


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_are_on_the_grid_of_each_group(kind, symmetric, x64):
    weights = normal(0, 12, 3).astype(jnp.float64)
    found = dequantize(quantize(weights, kind, group=4, symmetric=symmetric))
    assert found.dtype == jnp.float64
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        for column in range(3):
            expected = grid(np.asarray(weights[rows, column]), BITS[kind], symmetric)
            np.testing.assert_allclose(found[rows, column], expected, rtol=1e-12)


def test_ternary_is_of_the_mean_magnitude():
    weights = jnp.array([[0.1], [-0.2], [3.0], [-0.7]])
    found = quantize(weights, "ternary")
    assert found.codes[:, 0].astype(int).tolist() == [0, 0, 1, -1]
    np.testing.assert_allclose(found.scale, [[1.0]])


def test_fp8_is_within_its_precision():
    weights = normal(0, 64, 4)
    error = jnp.abs(dequantize(quantize(weights, "fp8")) - weights)
    smallest = jnp.abs(weights).max(0) / 448 * 2**-9
    assert (error <= jnp.maximum(jnp.abs(weights) * 2**-4, smallest)).all()


@pytest.mark.parametrize("kind", ["int8", "int4", "int2", "ternary", "fp8"])
@pytest.mark.parametrize("value", [0.0, 1e4, -1e-30])
def test_constant_weights_stay_finite(kind, value):
    weights = jnp.full((4, 1), value)
    found = dequantize(quantize(weights, kind))
    assert jnp.isfinite(found).all()
    assert (jnp.abs(found - weights) <= 0.34 * abs(value) + 1e-38).all()


@pytest.mark.parametrize(("kind", "group", "symmetric"), CASES)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_products_are_of_what_the_codes_stand_for(
    kind, group, symmetric, implementation
):
    x = normal(1, 3, 2, 15)
    weights = quantize(normal(0, 15, 7), kind, group=group, symmetric=symmetric)
    dense = multiplied_out(weights)
    np.testing.assert_allclose(dequantize(weights), dense, rtol=1e-6, atol=1e-7)
    product = functools.partial(quant_matmul, implementation=implementation)
    out, backward = jax.vjp(jax.jit(lambda x: product(x, weights)), x)
    np.testing.assert_allclose(
        out, np.asarray(x, np.float64) @ dense, rtol=1e-5, atol=1e-5
    )
    y = normal(2, 3, 2, 7)
    expected = np.asarray(y, np.float64) @ dense.T
    np.testing.assert_allclose(backward(y)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "symmetric", "activations"),
    [
        ("int8", True, "int8"),
        ("int4", False, "int8"),
        ("int2", False, "int8"),
        ("fp8", True, "fp8"),
    ],
)
@pytest.mark.parametrize("group", [None, 5])
def test_rounded_activations_have_a_scale_a_token(kind, symmetric, activations, group):
    x = normal(1, 4, 15) * jnp.array([[1.0], [1e4], [1e-4], [0.0]])
    weights = quantize(normal(0, 15, 7), kind, group=group, symmetric=symmetric)
    dense = multiplied_out(weights)
    x64 = np.asarray(x, np.float64)
    top = np.abs(x64).max(1, keepdims=True)
    if activations == "int8":
        step = np.where(top == 0, 1, top / 127)
        rounded = np.round(x64 / step) * step
    else:
        step = np.where(top == 0, 1, top / 448)
        rounded = (x64 / step).astype(jnp.float8_e4m3fn).astype(np.float64) * step
    for implementation in ("reference", "xla"):
        product = functools.partial(
            quant_matmul, activations=activations, implementation=implementation
        )
        found = product(x, weights)
        error = np.abs(found - rounded @ dense)
        assert (error <= 1e-5 * np.abs(rounded) @ np.abs(dense) + 1e-9).all()
        of_x = jax.grad(lambda x, f=product: f(x, weights).sum())(x)
        np.testing.assert_allclose(
            of_x, np.tile(dense.sum(1), (4, 1)), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("kind", "group", "symmetric"), CASES[:2] + CASES[-2:])
def test_rounded_weights_are_trained_straight_through(kind, group, symmetric):
    weights, gradient = normal(0, 15, 4), normal(1, 15, 4)
    fake = functools.partial(fake_quantize, kind=kind, group=group, symmetric=symmetric)
    rounded, backward = jax.vjp(fake, weights)
    expected = multiplied_out(quantize(weights, kind, group=group, symmetric=symmetric))
    np.testing.assert_allclose(rounded, expected, rtol=1e-5, atol=1e-7)
    assert (backward(gradient)[0] == gradient).all()


def test_bfloat16_is_summed_in_float32():
    x, weights = (normal(i, 3, 300, dtype=jnp.bfloat16) for i in range(2))
    rounded = quantize(weights.T, "int4", group=100)
    assert rounded.scale.dtype == jnp.bfloat16
    out = quant_matmul(x, rounded)
    assert out.dtype == jnp.bfloat16
    expected = np.asarray(x, np.float64) @ multiplied_out(rounded)
    # Weights are rounded to bfloat16 as well, independently of each other.
    spread = np.sqrt(np.asarray(x, np.float64) ** 2 @ multiplied_out(rounded) ** 2)
    error = np.abs(np.asarray(out, np.float64) - expected)
    assert (error <= 2**-8 * np.abs(expected) + 3 * 2**-9 * spread).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
@pytest.mark.parametrize("inputs", [1, 5, 243])
def test_ternary_codes_are_packed_exactly(inputs, seed):
    codes = np.random.default_rng(seed).integers(-1, 2, (inputs, 2))
    packed = pack_ternary(jnp.asarray(codes).astype(jnp.int2))
    assert packed.nbytes == 2 * -(-inputs // 5)
    assert (unpack_ternary(packed, inputs).astype(int) == codes).all()


def test_every_byte_of_ternary_codes_is_itself():
    every = np.stack(np.meshgrid(*[[-1, 0, 1]] * 5, indexing="ij")).reshape(5, -1)
    packed = pack_ternary(jnp.asarray(every))
    assert len(np.unique(packed)) == 3**5
    assert (unpack_ternary(packed, 5).astype(int) == every).all()


def test_layers_are_scanned_and_keep_codes_alone():
    layers = jax.vmap(lambda w: quantize(w, "int4", group=8))(normal(0, 3, 16, 16))
    x = normal(1, 2, 16)

    def network(x):
        return jax.lax.scan(lambda h, w: (quant_matmul(h, w), None), x, layers)[0]

    dense = np.eye(16)
    for layer in range(3):
        dense = dense @ multiplied_out(jax.tree.map(lambda x, i=layer: x[i], layers))
    np.testing.assert_allclose(network(x), x @ dense, rtol=1e-4, atol=1e-4)
    kept = jax.tree.leaves(jax.vjp(network, x)[1])
    assert {x.dtype for x in kept if x.shape == (3, 16, 16)} == {jnp.dtype("int4")}


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(
    ("kind", "activations"), [("int4", None), ("int2", None), ("int8", "int8")]
)
def test_compiles_for_tpus_without_dense_weights(topology, kind, activations):
    pytest.importorskip("libtpu")
    bf16 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    weights = jax.eval_shape(lambda w: quantize(w, kind, group=128), bf16((1024, 1024)))
    product = functools.partial(quant_matmul, activations=activations)
    memory = compile_for(topology, product, bf16((8, 1024)), weights).memory_analysis()
    assert memory.temp_size_in_bytes < 2**18


@pytest.mark.parametrize(
    ("kind", "activations"), [("int4", None), ("fp8", "fp8"), ("int2", "int8")]
)
def test_lowers_for_gpus(kind, activations):
    weights = jax.eval_shape(
        lambda w: quantize(w, kind), jax.ShapeDtypeStruct((32, 8), jnp.bfloat16)
    )
    product = functools.partial(quant_matmul, activations=activations)
    x = jax.ShapeDtypeStruct((4, 32), jnp.bfloat16)
    assert "stablehlo.dot_general" in lower_for_gpu(product, x, weights)


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_named():
    weights = jnp.ones((8, 2))
    int8 = quantize(weights, "int8")
    x = jnp.ones((1, 8))
    with pytest.raises(ValueError, match="unknown kind 'int3'"):
        quantize(weights, "int3")
    with pytest.raises(ValueError, match="has 8 inputs, which group=3 does not divide"):
        quantize(weights, "int8", group=3)
    with pytest.raises(ValueError, match="kind 'fp8' is symmetric"):
        quantize(weights, "fp8", symmetric=False)
    with pytest.raises(ValueError, match="has 1 rows of 5 codes, but inputs is 6"):
        unpack_ternary(jnp.zeros((1, 2), jnp.uint8), 6)
    with pytest.raises(ValueError, match=r"x has 4 inputs \(shape \(1, 4\)\)"):
        quant_matmul(jnp.ones((1, 4)), int8)
    with pytest.raises(ValueError, match="scale and zero must be"):
        quant_matmul(x, int8.replace(scale=jnp.ones((3, 2))))
    with pytest.raises(ValueError, match="activations 'int4'"):
        quant_matmul(x, int8, activations="int4")
    with pytest.raises(ValueError, match="'fp8' cannot be multiplied with codes of"):
        quant_matmul(x, int8, activations="fp8")
    with pytest.raises(ValueError, match="quant_matmul has no Pallas kernel"):
        quant_matmul(x, int8, implementation="pallas")
