"""Graph networks against float64 NumPy on dense adjacency, and their layers' laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.graphs import Graph, SparseMatrix, pad_graph, undirected

NODES, FEATURES, CLASSES = 9, 6, 3
rng = np.random.default_rng(0)
DENSE = rng.random((NODES, FEATURES)) * (rng.random((NODES, FEATURES)) < 0.4)
# Node 8 has no neighbours.
PAIRS = np.array([[0, 0, 1, 2, 3, 4, 5, 6, 2], [1, 2, 2, 3, 4, 5, 6, 7, 7]])


def graph(features=None):
    if features is None:
        features = DENSE.astype("f4")
    return jax.tree.map(jnp.asarray, Graph(features, *undirected(PAIRS)))


def sparse():
    from scipy.sparse import csr_array

    return SparseMatrix.from_scipy(csr_array(DENSE))


SIZES = {"features": FEATURES, "classes": CLASSES, "hidden": 8, "layers": 3}
BUILD = {
    "gcn": lambda: models.gcn(**SIZES),
    "graphsage": lambda: models.graphsage(**SIZES),
    "gat": lambda: models.gat(**SIZES),
    "node_mlp": lambda: models.node_mlp(**SIZES),
}


@pytest.fixture(scope="module", params=BUILD)
def network(request):
    found = BUILD[request.param]()
    variables = jax.jit(found.init)(jax.random.key(0))
    # Biases begin at 0: move them, or a layer without them would pass.
    key = jax.random.key(1)
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(key, x.shape), variables["params"]
    )
    apply = jax.jit(found.apply, static_argnames=("taps", "train"))
    return request.param, found, {**variables, "params": params}, apply


def reference(name, params):
    """Return the logits, with DGL's formulas on the graph with self-loops."""
    looped = np.eye(NODES)
    looped[PAIRS[0], PAIRS[1]] = looped[PAIRS[1], PAIRS[0]] = 1
    degree = looped.sum(1)
    layers = [
        {k: np.asarray(v, np.float64) for k, v in params["layers"][str(i)].items()}
        for i in range(3)
    ]
    x = DENSE
    for i, layer in enumerate(layers):
        x = np.maximum(x, 0) if i else x
        if name == "gcn":
            x = (looped / np.sqrt(np.outer(degree, degree))) @ x @ layer["kernel"]
        elif name == "graphsage":
            x = ((looped @ x + x) / (degree + 1)[:, None]) @ layer["kernel"]
        elif name == "gat":
            x = heads(x, layer, looped)
        else:
            x = x @ layer["kernel"]
        x = x + layer["bias"]
    return x


def heads(x, layer, looped):
    z = (x @ layer["kernel"]).reshape(NODES, *layer["source"].shape)
    found = []
    for head in range(z.shape[1]):
        own = z[:, head]
        scores = np.add.outer(own @ layer["target"][head], own @ layer["source"][head])
        scores = np.where(scores > 0, scores, 0.2 * scores)
        weights = np.where(looped > 0, np.exp(scores - scores.max()), 0)
        found.append(weights / weights.sum(1, keepdims=True) @ own)
    return np.concatenate(found, axis=1)


def test_logits_are_the_reference_s_sparse_and_padded_too(network):
    name, _, variables, apply = network
    padded = jax.tree.map(jnp.asarray, pad_graph(graph(sparse()), 8))
    assert padded.nodes == 16
    for given in (graph(), padded):
        logits = apply(variables, given)[0].logits[:NODES]
        expected = reference(name, variables["params"])
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradients_of_sparse_features_are_those_of_dense_ones(network):
    _, found, variables, _ = network

    @jax.jit
    def gradient(variables, graph):
        def loss(params):
            outputs, _ = found.apply({**variables, "params": params}, graph)
            return (outputs.logits**2).sum()

        return jax.grad(loss)(variables["params"])

    pair = [gradient(variables, graph(x)) for x in (DENSE.astype("f4"), sparse())]
    for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
        assert jnp.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_taps_and_dropout(network):
    _, found, variables, apply = network
    assert found.taps == ("hidden0", "hidden1", "pooled")
    drawn = [
        apply(
            variables,
            graph(sparse()),
            taps=found.taps,
            train=True,
            key=jax.random.key(seed),
        )[0]
        for seed in (0, 0, 1)
    ]
    features = drawn[0].features
    assert features["hidden0"].shape == (NODES, 8)
    assert (features["hidden1"] == features["pooled"]).all()
    assert features["hidden0"].min() == 0
    assert jnp.array_equal(drawn[0].logits, drawn[1].logits)
    assert not jnp.allclose(drawn[0].logits, drawn[2].logits)


def test_attention_is_a_distribution_over_neighbours_and_self():
    from jaxkd.models.graph.gnn import attention

    g = graph()
    source, target = jnp.asarray(rng.normal(0, 1e4, (2, NODES, 2)))
    own, edges = attention(g, source, target)
    total = own + jax.ops.segment_sum(edges, g.receivers, NODES)
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    np.testing.assert_allclose(own[8], 1)


def test_initial_weights_have_the_scale_of_dgl_and_torch():
    wide = {"features": 300, "classes": 3, "hidden": 200}

    def first_layer(name):
        init = models.create(name, **wide).init
        made = jax.jit(init)(jax.random.key(0))
        return made["params"]["layers"]["0"]

    expected = {
        "gcn": np.sqrt(6 / 500),
        "graphsage": np.sqrt(12 / 500),
        "node_mlp": np.sqrt(1 / 300),
    }
    for name, bound in expected.items():
        kernel = first_layer(name)["kernel"]
        np.testing.assert_allclose(jnp.abs(kernel).max(), bound, rtol=1e-2)
    layer = first_layer("gat")
    np.testing.assert_allclose(layer["kernel"].std(), np.sqrt(4 / 500), rtol=2e-2)
    np.testing.assert_allclose(layer["source"].std(), np.sqrt(4 / 250), rtol=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.gcn(5, 2, layers=1), "layers must be at least 2, got 1"),
        (lambda: models.gat(5, 2, layers=1), "layers must be at least 2, got 1"),
        (lambda: models.gat(5, 2, hidden=6), "hidden 6 cannot be shared by 4 heads"),
        (
            lambda: jax.eval_shape(
                lambda: models.gcn(5, 2).apply(
                    models.gcn(5, 2).init(jax.random.key(0)), graph()
                )
            ),
            r"\(9, 6\), but this network was built for 5",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
