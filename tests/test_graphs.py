"""Sums over edges: against dense matrices, their gradients, padding, and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import random_array

from jaxkd import graphs
from jaxkd.checks import check_batch
from jaxkd.graphs import (
    Graph,
    SparseMatrix,
    check_graph,
    edge_dot,
    edge_sum,
    pad_graph,
    undirected,
)

NODES, SOURCES, HEADS, WIDTH = 5, 7, 2, 3
rng = np.random.default_rng(0)


@pytest.fixture
def edges():
    """Seven hundred edges, so that there are several blocks and a part of one."""
    senders, receivers = rng.integers(0, SOURCES, 700), rng.integers(0, NODES, 700)
    return jnp.asarray(senders), jnp.asarray(receivers)


def floats(*shape):
    return jnp.asarray(rng.normal(size=shape))


def plain(values, senders, receivers, x, nodes):
    """The same sum with one row an edge."""
    return jax.ops.segment_sum(values[..., None] * x[senders], receivers, nodes)


@pytest.mark.usefixtures("x64")
def test_edge_sum_and_its_gradients_are_the_plain_ones(edges):
    values, x = floats(700, HEADS), floats(SOURCES, HEADS, WIDTH)
    weight = floats(NODES, HEADS, WIDTH)

    def both(function):
        def loss(values, x):
            total = function(values, *edges, x, NODES)
            return (weight * jnp.sin(total)).sum(), total

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(values, x)

    (_, total), gradients = both(edge_sum)
    (_, expected), expected_gradients = both(plain)
    np.testing.assert_allclose(total, expected, rtol=1e-10)
    for found, right in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_blocks_of_edges_add_up_to_the_same(edges, monkeypatch):
    # What other platforms run.
    monkeypatch.setattr(graphs, "BLOCK", 256)
    values, x = floats(700, HEADS), floats(SOURCES, HEADS, WIDTH)
    found = jax.jit(functools.partial(graphs._add_blocks, NODES))(values, *edges, x)
    np.testing.assert_allclose(found, plain(values, *edges, x, NODES), rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_edge_sum_has_second_derivatives_and_is_vmapped(edges):
    values, x = floats(700, HEADS), floats(3, SOURCES, HEADS, WIDTH)

    def curvature(function):
        def loss(x, along):
            return (function(values, *edges, x, NODES) ** 3 * along).sum()

        def twice(x):
            gradient = jax.grad(loss)
            return jax.grad(lambda x: (gradient(x, 1.0) ** 2).sum())(x)

        return jax.jit(jax.vmap(twice))(x)

    np.testing.assert_allclose(curvature(edge_sum), curvature(plain), rtol=1e-8)


def test_edge_dot(edges):
    x, y = floats(SOURCES, HEADS, WIDTH), floats(NODES, HEADS, WIDTH)
    expected = (x[edges[0]] * y[edges[1]]).sum(-1)
    np.testing.assert_allclose(edge_dot(*edges, x, y), expected, rtol=1e-5, atol=1e-6)


def test_no_edges_are_a_sum_of_zero():
    none = jnp.zeros(0, int)
    total = edge_sum(jnp.zeros((0, 1)), none, none, jnp.ones((4, 1, 2)), 3)
    assert total.shape == (3, 1, 2)
    assert jnp.all(total == 0)


def test_ends_out_of_bounds_reach_no_other_memory():
    x = jnp.arange(4.0)[:, None, None]
    senders, receivers = jnp.array([1, 10**6, 2]), jnp.array([0, 1, 10**6])
    total = edge_sum(jnp.ones((3, 1)), senders, receivers, x, 3)
    # The last row for a sender that does not exist, nothing for such a receiver.
    assert total.ravel().tolist() == [1.0, 3.0, 0.0]


def test_bfloat16_stays_bfloat16(edges):
    x = jnp.ones((SOURCES, HEADS, WIDTH), jnp.bfloat16)
    total = edge_sum(jnp.ones((700, HEADS), jnp.bfloat16), *edges, x, NODES)
    assert total.dtype == jnp.bfloat16


def test_memory_grows_with_nodes_not_with_edges():
    # A million edges of width 64 would be 256 MB; the nodes' rows are 0.5 MB.
    nodes, edges, width = 2000, 1_000_000, 64

    def temporaries(function):
        def loss(values, x, senders, receivers):
            return (function(values, senders, receivers, x, nodes) ** 2).sum()

        shapes = [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in (
                ((edges, 1), jnp.float32),
                ((nodes, 1, width), jnp.float32),
                ((edges,), jnp.int32),
                ((edges,), jnp.int32),
            )
        ]
        gradient = jax.jit(jax.grad(loss, 1))
        compiled = gradient.lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # What is left are the edges' numbers, sorted by both of their ends.
    assert temporaries(edge_sum) < 40e6
    assert temporaries(plain) > 250e6


def test_sparse_matrix_is_the_dense_one():
    matrix = random_array((40, 30), density=0.2, rng=0)
    weight = jnp.asarray(rng.normal(size=(30, 8)), jnp.float32)
    sparse, dense = SparseMatrix.from_scipy(matrix), jnp.asarray(matrix.toarray())

    def loss(weight, x):
        return ((x @ weight) ** 2).sum()

    for function in (lambda x: x @ weight, lambda x: jax.grad(loss)(weight, x)):
        np.testing.assert_allclose(function(sparse), function(dense), rtol=1e-4)
    assert (sparse.to_scipy().toarray() == matrix.toarray().astype(np.float32)).all()
    with pytest.raises(ValueError, match=r"shape \(40, 30\).*\(29, 8\)"):
        sparse @ weight[:29]


def triangle(**changes):
    """Return three nodes joined with one another, and a fourth one alone."""
    senders, receivers = undirected(np.array([[0, 1, 0], [1, 2, 2]]))
    arrays = {"features": np.ones((4, 2), np.float32), "senders": senders}
    return Graph(**{**arrays, "receivers": receivers, **changes})


def test_undirected_has_both_directions_once():
    senders, receivers = undirected(np.array([[0, 2, 1, 3, 0], [2, 0, 0, 3, 2]]))
    assert list(zip(senders, receivers, strict=True)) == [
        (1, 0),
        (2, 0),
        (0, 1),
        (0, 2),
    ]


def test_degrees_leave_padding_out():
    assert triangle().degrees().tolist() == [2, 2, 2, 0]
    mask = np.array([True, True, False, False, True, True])
    assert triangle(edge_mask=mask).degrees().tolist() == [2, 0, 2, 0]


def test_padding():
    sparse = SparseMatrix.from_scipy(random_array((5, 3), density=0.5, rng=0))
    small = triangle(features=sparse)
    padded = pad_graph(small, 8)
    assert (padded.nodes, padded.edges) == (8, 8)
    assert padded.features.values.shape == (8,)
    assert padded.edge_mask.tolist() == [True] * 6 + [False] * 2
    weight = jnp.ones((3, 2))
    np.testing.assert_allclose(
        padded.features @ weight, np.pad(sparse @ weight, ((0, 3), (0, 0)))
    )
    assert padded.degrees().tolist() == [2, 2, 2, 0, 0, 0, 0, 0]
    check_graph(padded)
    assert pad_graph(triangle(), 3).features.shape == (6, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"senders": np.array([0, 1, 2])}, r"'senders': \(3,\)"),
        ({"receivers": np.array([1, 2, 0, 2, 1, 4])}, "receivers holds 4.*0 to 3"),
        ({"senders": np.array([-1, 2, 0, 2, 0, 1])}, "senders holds -1"),
        ({"senders": np.array([0, 0, 0, 0, 1, 1])}, "2 self-loops, the first at"),
        ({"edge_mask": np.ones(5, bool)}, r"'edge_mask': \(5,\)"),
        (
            {"features": SparseMatrix(*np.array([[0, 4], [0, 0], [1, 1]]), (4, 2))},
            "features.rows holds 4",
        ),
        (
            {
                "features": SparseMatrix(
                    np.zeros(2, int), np.zeros(3, int), np.ones(2), (4, 2)
                )
            },
            r"'columns': \(3,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_graph(triangle(**changes))


def test_a_graph_is_a_batch_of_its_nodes():
    batch = {"graph": triangle(), "label": np.zeros(4, int)}
    check_batch(batch, 2)
    with pytest.raises(ValueError, match=r"\['graph'\].nodes\": 4, .*label.*: 3"):
        check_batch({**batch, "label": np.zeros(3, int)})
    with pytest.raises(ValueError, match="receivers holds 9"):
        check_batch({**batch, "graph": triangle(receivers=np.full(6, 9))})
    features = np.full((4, 2), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"\['graph'\].features holds 8 values"):
        check_batch({**batch, "graph": triangle(features=features)})
