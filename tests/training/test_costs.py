"""Compiled programs' costs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.training import MeshShape, make_mesh
from jaxkd.training.ahead import compile_for, slice_devices
from jaxkd.training.costs import program_costs

LAYERS, ROWS, WIDTH = 3, 2048, 512
WEIGHTS = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.bfloat16)
INPUTS = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16)


@pytest.fixture(scope="module", autouse=True)
def libtpu():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")


def costs(function, *shapes):
    return program_costs(compile_for("v5e:2x2", function, *shapes).as_text())


def network(weights, x, unroll):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, unroll=unroll)
    return (x.astype(jnp.float32) ** 2).sum()


@pytest.mark.parametrize("unroll", [1, LAYERS])
def test_a_loop_counts_as_often_as_it_runs(unroll):
    found = costs(jax.grad(lambda w, x: network(w, x, unroll)), WEIGHTS, INPUTS)
    product = 2 * ROWS * WIDTH**2
    # Forward, and backward to weights and inputs; a loop computes the first layer's
    # gradient to its inputs too, which nobody reads.
    layers = 3 * LAYERS - (unroll == LAYERS)
    assert found.flops == pytest.approx(layers * product)
    weights = 2 * LAYERS * WIDTH**2
    # Weights are read forward and backward, and their gradient is written.
    assert 3 * weights <= found.bytes_accessed < 30 * weights
    assert not found.collectives


def test_ragged_products_count_a_row_once():
    def product(w, x, sizes):
        return jax.lax.ragged_dot(x, w, sizes)

    experts = jax.ShapeDtypeStruct((8, WIDTH, WIDTH), jnp.bfloat16)
    sizes = jax.ShapeDtypeStruct((8,), jnp.int32)
    one = 2 * ROWS * WIDTH**2
    assert costs(product, experts, INPUTS, sizes).flops == pytest.approx(one)
    both = jax.grad(lambda w, x, n: (product(w, x, n) ** 2).sum(), (0, 1))
    assert costs(both, experts, INPUTS, sizes).flops == pytest.approx(3 * one)


@pytest.mark.slow
def test_convolutions():
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = jax.ShapeDtypeStruct((8, 32, 32, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32)
    one = 2 * 8 * 16 * 16 * 9 * 64 * 128
    # Of the window's taps those on padding, the last row and column, do no work.
    one *= (47 / 48) ** 2
    assert costs(convolve, x, w).flops == pytest.approx(one)
    both = jax.grad(lambda w, x: (convolve(x, w) ** 2).sum())
    assert costs(both, w, x).flops == pytest.approx(2 * one)


def test_products_that_become_convolutions_of_padding():
    x = jax.ShapeDtypeStruct((4, 1024, 512), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((512, 32 * 128), jnp.bfloat16)
    found = costs(lambda x, w: (x @ w).reshape(4, 1024, 32, 128) * 2, x, w)
    assert found.flops == pytest.approx(2 * 4 * 1024 * 512 * 32 * 128)


def test_what_a_kernel_states():
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def double(x):
        estimate = pl.CostEstimate(flops=321, bytes_accessed=0, transcendentals=0)
        return pl.pallas_call(kernel, x, cost_estimate=estimate)(x)

    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    found = costs(double, x)
    assert found.flops == 321
    assert found.bytes_accessed == 2 * 4 * 512 * 512


def test_collectives_by_kind():
    mesh = make_mesh(MeshShape(fsdp=8), slice_devices("v5e:2x4"))

    def place(shape, *spec):
        where = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)

    def step(weights, x):
        split = NamedSharding(mesh, PartitionSpec("fsdp"))

        def loss(weights):
            def layer(x, w):
                return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), split), None

            return (jax.lax.scan(layer, x, weights)[0].astype(jnp.float32) ** 2).sum()

        return jax.value_and_grad(loss)(weights)

    out = place(()).sharding, place(WEIGHTS.shape, None, "fsdp").sharding
    arguments = place(WEIGHTS.shape, None, "fsdp"), place(INPUTS.shape, "fsdp")
    compiled = jax.jit(step, out_shardings=out).lower(*arguments).compile()
    found = program_costs(compiled.as_text() or "")
    layer = 2 * WIDTH**2 * 7 / 8
    # A layer's weights are gathered on the way there, and at most once on the way back.
    assert LAYERS * layer <= found.collectives["all-gather"] <= 2 * LAYERS * layer
    assert found.flops == pytest.approx(3 * LAYERS * 2 * ROWS * WIDTH**2 / 8)


def test_loops_without_a_length_and_other_texts_are_refused():
    def halve(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x)

    with pytest.raises(ValueError, match="no number of turns that can be read"):
        costs(halve, jax.ShapeDtypeStruct((8, 128), jnp.float32))
    with pytest.raises(ValueError, match="no ENTRY"):
        program_costs("HloModule")
