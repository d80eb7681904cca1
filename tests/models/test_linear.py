"""The zoo's linear layer: Flax's numbers, from products of matrices on CPUs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd.models.parts.linear import Linear, on_rows
from jaxkd.sharding.mesh import make_mesh, on_mesh

X = jax.random.normal(jax.random.key(0), (2, 3, 5))


def loss_and_weights(kind, **arguments):
    graph, weights = nnx.split(kind(5, 7, **arguments, rngs=nnx.Rngs(1)))

    def loss(weights, x):
        return (nnx.merge(graph, weights)(x) ** 2).sum(dtype=jnp.float32)

    return loss, weights


def assert_close(found, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a.astype("f4"), b.astype("f4"), rtol=tolerance, atol=tolerance
        ),
        *map(jax.tree.leaves, (found, expected)),
    )


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0)])
def test_values_and_gradients_are_flaxs(dtype, tolerance, use_bias):
    found = []
    for kind in (Linear, nnx.Linear):
        loss, weights = loss_and_weights(kind, use_bias=use_bias, param_dtype=dtype)
        x = X.astype(dtype)
        found.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(weights, x))
    assert_close(*found, tolerance)


def test_derivatives_go_forward_and_twice_as_flaxs():
    """As the bilevel program's look-ahead needs them."""
    found = []
    for kind in (Linear, nnx.Linear):
        loss, weights = loss_and_weights(kind)
        gradient = jax.grad(loss)
        forward = lambda w, g=gradient: jax.jvp(lambda w: g(w, X), (w,), (w,))  # noqa: E731
        found.append(jax.jit(forward)(weights))
    assert_close(*found, 1e-6)


def lowered(kind, mesh=None):
    loss, weights = loss_and_weights(kind)
    gradient = jax.grad(loss)
    gradient = gradient if mesh is None else on_mesh(gradient, mesh)
    return jax.jit(gradient).lower(weights, X).as_text()


def test_on_a_cpu_products_are_of_rows_and_on_a_mesh_as_they_were():
    factors = re.compile(r"dot_general.*: \(tensor<(\w+)xf32>, tensor<(\w+)xf32>\)")
    assert ("2x3x5", "5x7") in factors.findall(lowered(nnx.Linear))
    assert factors.findall(lowered(Linear)) == [("6x5", "5x7"), ("6x7", "6x5")]
    mesh = make_mesh("one")
    assert lowered(Linear, mesh) == lowered(nnx.Linear, mesh)


def test_no_rows_and_single_rows_pass_through():
    product = lambda x: x @ jnp.ones((5, 7))  # noqa: E731
    assert on_rows(product, X[:0]).shape == (0, 3, 7)
    assert on_rows(product, X[0, 0]).shape == (7,)
