"""Graph networks, and the perceptron on node features that learns from them.

GCN (Kipf and Welling 2017, arXiv:1609.02907), GraphSAGE (Hamilton et al. 2017,
arXiv:1706.02216) and GAT (Veličković et al. 2018, arXiv:1710.10903) with the constants
and initial weights of the DGL library, on the graph with a self-loop at every node. All
take a `Graph` and return one row of logits a node; taps are ``hidden0`` … (nodes,
hidden), after each inner layer's ReLU and before its dropout, and ``pooled``, the last
of them. Features may be sparse, and no activation has a row of ``hidden`` an edge.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, fraction
from jaxkd.graphs import Graph, SparseMatrix, edge_sum
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs

xavier_uniform = nnx.initializers.xavier_uniform()
# PyTorch's gain for ReLU, √2, doubles the variance.
xavier_uniform_relu = nnx.initializers.variance_scaling(2.0, "fan_avg", "uniform")
xavier_normal_relu = nnx.initializers.variance_scaling(2.0, "fan_avg", "normal")
# PyTorch's Linear: uniform in ±1/√fan_in.
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class GraphConv(nnx.Module):
    """D^-½ (A + I) D^-½ X W + b, with the degrees D of A + I."""

    def __init__(self, fan_in: int, fan_out: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(xavier_uniform(rngs.params(), (fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros(fan_out))

    def __call__(self, graph: Graph, x: Any) -> Float[Array, "nodes out"]:
        """Return the convolved features of every node."""
        scale = jax.lax.rsqrt(graph.degrees() + 1)[:, None]
        x = scale * (x @ self.kernel[...])
        return scale * (neighbor_sum(graph, x) + x) + self.bias[...]


class SAGEConv(nnx.Module):
    """The mean of a node and its neighbours, times W, plus b (aggregator "gcn").

    In a graph with self-loops, as DGL counts, the node itself comes twice.
    """

    def __init__(self, fan_in: int, fan_out: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(xavier_uniform_relu(rngs.params(), (fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros(fan_out))

    def __call__(self, graph: Graph, x: Any) -> Float[Array, "nodes out"]:
        """Return the averaged features of every node."""
        x = x @ self.kernel[...]
        total = neighbor_sum(graph, x) + 2 * x
        return total / (graph.degrees() + 2)[:, None] + self.bias[...]


class GATConv(nnx.Module):
    """Attention over a node and its neighbours, with several heads side by side."""

    def __init__(
        self,
        fan_in: int,
        heads: int,
        width: int,
        dropout: float,
        attention_dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.heads, self.width = heads, width
        key = rngs.params
        self.kernel = nnx.Param(xavier_normal_relu(key(), (fan_in, heads * width)))
        # PyTorch's fans of an array (1, heads, width) are heads·width and width.
        scale = jnp.sqrt(4 / (width + heads * width))
        self.source = nnx.Param(scale * jax.random.normal(key(), (heads, width)))
        self.target = nnx.Param(scale * jax.random.normal(key(), (heads, width)))
        self.bias = nnx.Param(jnp.zeros(heads * width))
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.attention_dropout = nnx.Dropout(attention_dropout, rngs=rngs)

    def __call__(self, graph: Graph, x: Any) -> Float[Array, "nodes out"]:
        """Return the heads' attended features of every node, one after another."""
        x = drop_features(self.dropout, x) @ self.kernel[...]
        x = x.reshape(-1, self.heads, self.width)
        source = (x * self.source[...]).sum(-1)
        target = (x * self.target[...]).sum(-1)
        own, edges = attention(graph, source, target)
        own, edges = self.attention_dropout(own), self.attention_dropout(edges)
        sent = edge_sum(edges, graph.senders, graph.receivers, x, graph.nodes)
        total = sent + own[..., None] * x
        return total.reshape(graph.nodes, -1) + self.bias[...]


@checked()
def attention(
    graph: Graph,
    source: Float[Array, "nodes heads"],
    target: Float[Array, "nodes heads"],
) -> tuple[Float[Array, "nodes heads"], Float[Array, "edges heads"]]:
    """Return every node's attention to itself, and to its neighbours by edge.

    They are a softmax of leaky_relu(source of the sender + target of the receiver, 0.2)
    over the edges that end at a node and its self-loop.
    """
    senders, receivers = graph.senders, graph.receivers
    own = jax.nn.leaky_relu(source + target, 0.2)
    edges = jax.nn.leaky_relu(source[senders] + target[receivers], 0.2)
    counted = graph.edge_weights()[:, None]
    edges = jnp.where(counted > 0, edges, -jnp.inf)
    highest = jax.ops.segment_max(edges, receivers, graph.nodes)
    highest = jax.lax.stop_gradient(jnp.maximum(highest, own))
    own, edges = jnp.exp(own - highest), jnp.exp(edges - highest[receivers])
    total = own + jax.ops.segment_sum(edges, receivers, graph.nodes)
    return own / total, edges / total[receivers]


class NodeLinear(nnx.Module):
    """X W + b with PyTorch's initial weights; it does not look at the edges."""

    def __init__(self, fan_in: int, fan_out: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(torch_uniform(rngs.params(), (fan_in, fan_out)))
        bound = fan_in**-0.5
        self.bias = nnx.Param(
            jax.random.uniform(rngs.params(), (fan_out,), minval=-bound, maxval=bound)
        )

    def __call__(self, graph: Graph, x: Any) -> Float[Array, "nodes out"]:
        """Return the features of every node, each for itself."""
        return x @ self.kernel[...] + self.bias[...]


class NodeNetwork(nnx.Module):
    """Layers of ``(graph, features) -> features`` with ReLU and dropout between."""

    def __init__(
        self,
        features: int,
        layers: Sequence[nnx.Module],
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.features = features
        self.layers = nnx.List(layers)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.taps = (*(f"hidden{i}" for i in range(len(layers) - 1)), "pooled")

    def __call__(self, graph: Graph, *, steps: Steps | None = None) -> Outputs:
        """Return logits (nodes, classes), and the features asked for."""
        steps = steps or Steps()
        return steps.outputs(self._logits, graph, steps)

    def _logits(self, graph: Graph, steps: Steps) -> Array:
        if graph.features.shape[1] != self.features:
            raise ValueError(
                f"graph.features has shape {graph.features.shape}, but this network "
                f"was built for {self.features} features a node: build it with "
                f"features={graph.features.shape[1]}"
            )
        graph = jax.tree.map(jnp.asarray, graph)
        *layers, last = self.layers
        x = graph.features
        for i, layer in enumerate(layers):
            x = jax.nn.relu(layer(graph, self.dropout(x) if i else x))
            x = steps.tap(f"hidden{i}", x)
        return last(graph, self.dropout(steps.tap("pooled", x)))


@checked()
def neighbor_sum(
    graph: Graph, x: Float[Array, "nodes width"]
) -> Float[Array, "nodes width"]:
    """Return the sum of every node's neighbours, those whose edges end at it."""
    weights = graph.edge_weights()[:, None].astype(x.dtype)
    return edge_sum(weights, graph.senders, graph.receivers, x[:, None], graph.nodes)[
        :, 0
    ]


@checked()
def drop_features(dropout: nnx.Dropout, x: Any) -> Any:
    """Return features after dropout; of sparse ones, entries that are 0 stay 0."""
    if isinstance(x, SparseMatrix):
        return SparseMatrix(x.rows, x.columns, dropout(x.values), x.shape)
    return dropout(x)


def _network(layer: Any, features, hidden, classes, layers, dropout) -> Network:
    if layers < 2:
        raise ValueError(f"layers must be at least 2, got {layers}")
    sizes = [features, *[hidden] * (layers - 1), classes]

    def build(rngs: nnx.Rngs) -> nnx.Module:
        made = [layer(a, b, rngs=rngs) for a, b in pairwise(sizes)]
        return NodeNetwork(features, made, dropout, rngs)

    return Network.from_nnx(build, reads=("graph",))


@checked(dropout=fraction)
@recorded
def gcn(
    features: int,
    classes: int,
    hidden: int = 256,
    layers: int = 2,
    dropout: float = 0.5,
) -> Network:
    """Return a graph convolutional network.

    Args:
        features: of a node.
        classes: logits of a node.
        hidden: width of the inner layers.
        layers: at least 2.
        dropout: after every inner layer.

    Raises:
        ValueError: fewer than 2 layers; from ``apply``, other features.
    """
    return _network(GraphConv, features, hidden, classes, layers, dropout)


@checked(dropout=fraction)
@recorded
def graphsage(
    features: int,
    classes: int,
    hidden: int = 256,
    layers: int = 2,
    dropout: float = 0.5,
) -> Network:
    """Return a GraphSAGE network with mean aggregation; arguments as of `gcn`."""
    return _network(SAGEConv, features, hidden, classes, layers, dropout)


@checked(dropout=fraction)
@recorded
def node_mlp(
    features: int,
    classes: int,
    hidden: int = 256,
    layers: int = 2,
    dropout: float = 0.5,
) -> Network:
    """Return a perceptron on the nodes' features; arguments as of `gcn`.

    It takes a `Graph` as the graph networks do, and reads nothing but its features.
    """
    return _network(NodeLinear, features, hidden, classes, layers, dropout)


@checked(dropout=fraction)
@recorded
def gat(
    features: int,
    classes: int,
    hidden: int = 256,
    layers: int = 2,
    dropout: float = 0.5,
    heads: int = 4,
    attention_dropout: float = 0.3,
) -> Network:
    """Return a graph attention network; the last layer has one head.

    Args:
        features: of a node.
        classes: logits of a node.
        hidden: width of the inner layers, of all heads together.
        layers: at least 2.
        dropout: of every layer's inputs.
        heads: of the inner layers.
        attention_dropout: of the attention.

    Raises:
        ValueError: fewer than 2 layers, or a width that the heads cannot share; from
            ``apply``, other features.
    """
    if layers < 2:
        raise ValueError(f"layers must be at least 2, got {layers}")
    if hidden % heads:
        raise ValueError(
            f"hidden {hidden} cannot be shared by {heads} heads: use a multiple of it"
        )
    rates = (dropout, attention_dropout)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        sizes = [features, *[hidden] * (layers - 1)]
        made = [
            GATConv(a, heads, b // heads, *rates, rngs=rngs) for a, b in pairwise(sizes)
        ]
        made.append(GATConv(hidden, 1, classes, *rates, rngs=rngs))
        # Every layer drops its own inputs.
        return NodeNetwork(features, made, 0.0, rngs)

    return Network.from_nnx(build, reads=("graph",))
