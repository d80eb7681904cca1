"""The graphs' files, their splits, and a graph as the one batch of a training run."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.sparse import csr_array

import jaxkd
from jaxkd import data, methods, models, training
from jaxkd.data.graphs import GraphDataset
from jaxkd.graphs import Graph, SparseMatrix, undirected

NODES = 40


def write(folder, name, **changes):
    rng = np.random.default_rng(0)
    dense = rng.random((NODES, 30)) < changes.pop("density", 0.05)
    dense[3] = False
    columns = np.nonzero(dense)[1]
    arrays = {
        "edges": np.array([[0, 1, 5], [1, 2, 9]], np.int32),
        "y": (np.arange(NODES) % 2).astype(np.uint8),
        "x_data": np.full(len(columns), 2, np.uint8),
        "x_indices": columns.astype(np.uint16),
        "x_indptr": np.r_[0, np.cumsum(dense.sum(1))].astype(np.int32),
        "x_shape": np.array(dense.shape),
        "train_idx": np.arange(4, dtype=np.int32),
        "val_idx": np.arange(4, 10, dtype=np.int32),
        "test_idx": np.arange(10, NODES, dtype=np.int32),
        **changes,
    }
    (folder / "graph").mkdir(exist_ok=True)
    np.savez(folder / "graph" / f"{name}.npz", **arrays)
    return dense


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    return tmp_path


def test_citations_are_normalised_and_the_others_are_not(folder):
    dense = write(folder, "planetoid_cora")
    found = data.load_graph("cora")
    assert isinstance(found.graph.features, SparseMatrix)
    rows = np.asarray(found.graph.features @ jnp.eye(30))
    expected = dense / np.maximum(dense.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    assert found.graph.senders.tolist() == [1, 0, 2, 1, 9, 5]
    assert found.graph.receivers.tolist() == [0, 1, 1, 2, 5, 9]
    assert found.classes == 2

    dense = write(folder, "coauthor_cs", density=0.5)
    found = data.load_graph("coauthor_cs")
    np.testing.assert_array_equal(found.graph.features, 2.0 * dense)


def test_bad_files_and_names(folder):
    with pytest.raises(FileNotFoundError, match=r"planetoid_pubmed.npz.*all 19,717"):
        data.load_graph("pubmed")
    write(folder, "planetoid_pubmed", y=np.zeros(NODES + 2, np.uint8))
    with pytest.raises(ValueError, match="features of 40 of 42 nodes"):
        data.load_graph("pubmed")
    with pytest.raises(ValueError, match="unknown graph 'coar': did you mean 'cora'"):
        data.load_graph("coar")


@pytest.fixture
def toy():
    rng = np.random.default_rng(0)
    # 41 nodes are padded to 44 for four devices.
    nodes = NODES + 1
    label = (np.arange(nodes) % 3).astype(np.int32)
    features = np.eye(3, dtype="f4")[label] + rng.normal(0, 0.1, (nodes, 3))
    members = [np.flatnonzero(label == c) for c in range(3)]
    pairs = np.concatenate([np.stack([m[:-1], m[1:]]) for m in members], axis=1)
    graph = Graph(features.astype("f4"), *undirected(pairs))
    parts = np.arange(6), np.arange(6, 20), np.arange(20, nodes)
    return GraphDataset("toy", graph, label, 3, *parts)


def test_split_is_balanced_disjoint_and_seeded(toy):
    found = toy.split(1, per_class=4, validation=10, test=15)
    assert np.bincount(found.label[found.train]).tolist() == [4, 4, 4]
    assert (len(found.validation), len(found.test)) == (10, 15)
    together = np.concatenate([found.train, found.validation, found.test])
    assert len(np.unique(together)) == 37
    again, other = (toy.split(s, per_class=4, validation=10, test=15) for s in (1, 2))
    assert np.array_equal(found.test, again.test)
    assert not np.array_equal(found.test, other.test)
    with pytest.raises(
        ValueError, match="14 nodes of class 0, fewer than per_class 15"
    ):
        toy.split(0, per_class=15)
    with pytest.raises(ValueError, match="29 nodes beside the labelled ones"):
        toy.split(0, per_class=4, validation=10, test=20)


def test_a_batch_has_a_mask_for_each_part(toy):
    batch = toy.batch()
    assert {
        name: int(batch[name].sum()) for name in ("labelled", "validation", "test")
    } == {
        "labelled": 6,
        "validation": 14,
        "test": 21,
    }
    assert not (batch["labelled"] * batch["test"]).any()


@pytest.mark.slow
@pytest.mark.parametrize("dense", [True, False])
def test_a_padded_graph_is_split_over_a_mesh(toy, dense):
    if not dense:
        features = SparseMatrix.from_scipy(csr_array(toy.graph.features))
        toy = replace(toy, graph=replace(toy.graph, features=features))
    student = models.node_mlp(3, 3, hidden=8, dropout=0.0)
    teacher = models.gat(3, 3, hidden=8, heads=2)
    program = jaxkd.distill(student, teacher, methods.ffg2m(), optax.sgd(0.1))
    state = jax.jit(program.init)(jax.random.key(0), toy.batch())
    step = jax.jit(program.step)
    _, expected = step(state, toy.batch())
    mesh = training.make_mesh("data")
    batch = toy.batch(multiple=mesh.size)
    assert mesh.size == 4
    assert batch["graph"].edges % 4 == 0
    _, found = step(state, training.shard_batch(batch, mesh))
    for name, value in expected.items():
        # The divergences are small: 1e-7 is the rounding of the logarithms in them.
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_graph_trains_in_the_common_loop(toy):
    network = models.gcn(3, 3, hidden=8, dropout=0.0)
    program = jaxkd.distill(
        network, None, methods.labelled_cross_entropy(), optax.adam(0.05)
    )
    state, history = training.fit(
        program, data.repeated(toy.batch(), 40), key=jax.random.key(0), steps=40
    )
    assert history[-1]["train_labels"] < 0.1
    logits = network.apply(state.student, toy.batch()["graph"])[0].logits
    accuracy = (np.argmax(logits, 1) == toy.label)[toy.test].mean()
    assert accuracy > 0.9
