"""FF-G2M's experiment: its protocol, a run of seconds, and the full scale's shapes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_array
from tiny import call

from experiments.ffg2m import experiment
from experiments.ffg2m.config import METHODS, PRESETS, SETTINGS, Setting
from experiments.ffg2m.experiment import EXPERIMENT
from jaxkd import Outputs
from jaxkd.data.graphs import GraphDataset
from jaxkd.graphs import Graph, SparseMatrix, undirected
from jaxkd.reporting.records import select
from jaxkd.reporting.run import Run
from jaxkd.types import TrainState


@pytest.fixture
def toy(monkeypatch):
    """Put a graph of three groups that are joined within themselves in Cora's place."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90).astype(np.int32)
    features = np.eye(3, dtype="f4")[label] + rng.normal(0, 2, (90, 3)).astype("f4")
    pairs = rng.integers(0, 90, (2, 2000))
    pairs = pairs[:, label[pairs[0]] == label[pairs[1]]]
    graph = Graph(features, *undirected(pairs))
    parts = np.arange(9), np.arange(9, 40), np.arange(40, 90)
    dataset = GraphDataset("toy", graph, label, 3, *parts)
    monkeypatch.setattr(experiment.data, "load_graph", lambda name: dataset)
    monkeypatch.setitem(SETTINGS, "cora-gcn", Setting(2, 16, 0.2, 0.2, 1.5, 0.3))


def test_students_are_scored_on_the_validation_nodes_alone(toy):
    whole = experiment.data.load_graph("cora")
    entries = csr_array(whole.graph.features)
    sparse = replace(
        whole, graph=replace(whole.graph, features=SparseMatrix.from_scipy(entries))
    )
    network, _ = experiment.learner(PRESETS["paper"], "cora-gcn", "mlp", 3, 3)
    score = experiment.validation_accuracy(network)
    state = TrainState(0, None, network.init(jax.random.key(0)), None, {}, None)
    batch = jax.tree.map(jnp.asarray, whole.batch())
    expected = score(state, batch)
    assert 0 < expected < 1
    for dataset in (whole, sparse):
        alone = jax.tree.map(jnp.asarray, experiment.validation_nodes(dataset))
        assert alone["graph"].features.shape == (31, 3)
        assert score(state, batch | {"validation_nodes": alone}) == expected


@pytest.mark.slow
def test_a_run_has_records_of_every_method_and_resumes(toy, tmp_path):
    config = replace(PRESETS["paper"], settings=("cora-gcn",), epochs=60, patience=20)
    records = EXPERIMENT.records(config, (0, 1), Run(tmp_path))
    for method in ("teacher", *METHODS):
        found = select(records, method, "test_accuracy", "cora-gcn")
        assert [r.seed for r in found] == [0, 1]
        epochs = [r.value for r in select(records, method, "epochs", "cora-gcn")]
        assert all(20 < e <= 60 for e in epochs)
    values = {
        method: np.mean(
            [r.value for r in select(records, method, "test_accuracy", "cora-gcn")]
        )
        for method in ("teacher", "mlp", "ffg2m")
    }
    assert values["teacher"] > 0.9
    assert values["ffg2m"] > values["mlp"] - 0.05
    metrics = {r.metric for r in records if r.method == "ffg2m"}
    assert metrics >= {
        "teacher_kl",
        "high_frequency_kl",
        "agreement",
        "neighbor_cosine",
    }
    assert EXPERIMENT.records(config, (0, 1), Run(tmp_path)) == records


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown setting 'cora-gnn'"):
        experiment.run(replace(PRESETS["small"], settings=("cora-gnn",)), (0,), None)
    with pytest.raises(ValueError, match="unknown method 'gln'"):
        experiment.run(replace(PRESETS["small"], methods=("gln",)), (0,), None)


def test_the_full_scale_batches_are_shared_by_eight_chips():
    for program, batch in experiment.full_scale(PRESETS["paper"]).values():
        state = jax.eval_shape(program.init, jax.random.key(0), batch)
        kernel = state.program.student["params"]["layers"]["0"]["kernel"]
        assert kernel.shape == (8415, 2048)
        assert all(len(x) % 8 == 0 for x in jax.tree.leaves(batch))
        assert ("validation_nodes" in batch) == ("teacher_logits" in batch)


def test_every_objective_weighs_the_labels_and_the_teacher():
    setting = Setting(2, 8, 0.5, 0.5, temperature=1.5, label_weight=0.2)
    rng = np.random.default_rng(0)
    student, teacher = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    batch = {
        "graph": Graph(jnp.zeros((5, 1)), jnp.array([0, 1, 3]), jnp.array([1, 0, 2])),
        "label": jnp.array([0, 1, 2, 0, 1]),
        "labelled": jnp.array([1.0, 1, 0, 0, 0]),
        "teacher_logits": teacher,
    }
    expected = {
        "teacher": {"labels": 1.0},
        "mlp": {"labels": 1.0},
        "glnn": {"labels": 0.2, "kd": 0.8},
        "low": {"labels": 0.2, "low_frequency": 0.8},
        "high": {"labels": 0.2, "high_frequency": 0.8},
        "ffg2m": {"labels": 0.2, "low_frequency": 0.8, "high_frequency": 0.8},
    }

    objectives = experiment.objectives(setting)
    assert set(objectives) == set(expected)

    @jax.jit
    def losses(student):
        found, key = {}, jax.random.key(0)
        for method in expected:
            objective = objectives[method]
            variables = objective.init(key, Outputs(student), None, batch)
            loss, (_, metrics) = call(
                objective, variables, Outputs(student), None, batch, key, 0
            )
            found[method] = loss, metrics
        return found

    for method, (loss, metrics) in losses(student).items():
        weights = expected[method]
        assert set(metrics) == set(weights)
        total = sum(weight * metrics[name] for name, weight in weights.items())
        np.testing.assert_allclose(loss, total, rtol=1e-6)
