"""FF-G2M: a perceptron learns low- and high-frequency knowledge of a graph network.

Wu et al. 2023, arXiv:2305.10758. For each graph and kind of teacher and every seed: a
graph network is trained on 20 labels a class, and perceptrons of its depth and width
learn from it, by the paper's two terms along edges, by one of them, node by node
(GLNN), or from the labels alone. Training stops when the validation accuracy has not
risen for 50 epochs, and the best weights are tested. ``small`` has Cora and Citeseer
with a GCN; ``paper``, ``medium`` and ``large`` have the paper's settings at its
hyper-parameters: the smallest, with every student, and the others by their size.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.ffg2m.claims import CLAIMS as CLAIMS  # the report's list
from experiments.ffg2m.config import (
    METHODS,
    PUBLIC_SPLIT,
    SETTINGS,
    TEACHERS,
    Config,
    Setting,
)
from experiments.ffg2m.config import (
    PAPER as PAPER,  # the report's column
)
from experiments.ffg2m.config import (
    PRESETS as PRESETS,
)
from jaxkd import data, losses, methods, models
from jaxkd.checks import unknown_name
from jaxkd.graphs import Graph, SparseMatrix
from jaxkd.network import Network
from jaxkd.programs import BestState, with_best
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Method, Program, Variables

SLICE = "v5e:2x4"
CHIPS = 8


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train all teachers and students, and return the records.

    Raises:
        ValueError: an unknown setting or method.
        FileNotFoundError: a graph's file is missing.
    """
    for name in config.settings:
        if name not in SETTINGS:
            raise ValueError(unknown_name("setting", name, SETTINGS))
    for name in config.methods:
        if name not in METHODS:
            raise ValueError(unknown_name("method", name, METHODS))
    return [
        record
        for setting in config.settings
        for record in run_setting(config, setting, seeds, run)
    ]


def run_setting(
    config: Config, name: str, seeds: Sequence[int], run: Run
) -> list[Record]:
    """Return the records of one graph and kind of teacher: by seed, then by method."""
    graph_name = name.rpartition("-")[0]
    dataset = data.load_graph(graph_name)
    trainer = Trainer(config, name, dataset)
    records = []
    for seed in seeds:
        split = dataset if graph_name in PUBLIC_SPLIT else dataset.split(seed)
        batch = jax.tree.map(jnp.asarray, split.batch())

        def teach(folder, batch=batch, seed=seed):
            found, logits = trainer.train("teacher", batch, seed)
            np.save(folder / "logits.npy", logits)
            return found

        records += run.part(f"{name}/teacher/seed{seed}", teach)
        logits = np.load(run.folder / f"{name}/teacher/seed{seed}/logits.npy")
        batch["teacher_logits"] = jnp.asarray(logits)
        batch["validation_nodes"] = jax.tree.map(jnp.asarray, validation_nodes(split))
        for method in config.methods:
            records += run.part(
                f"{name}/{method}/seed{seed}",
                lambda _, m=method, b=batch, s=seed: trainer.train(m, b, s)[0],
            )
    return records


class Trainer:
    """Trains one setting's networks; each is compiled once for all seeds."""

    def __init__(self, config: Config, name: str, dataset: data.GraphDataset):
        self.config, self.name, self.dataset = config, name, dataset
        self.compiled = functools.cache(self._compiled)

    def _compiled(self, method: str) -> tuple[Network, Callable, Callable]:
        features = self.dataset.graph.features.shape[1]
        network, program = programs(
            self.config, self.name, method, features, self.dataset.classes
        )
        # Init runs once, and takes longer to compile well than to run.
        options = {"xla_backend_optimization_level": 0}
        start = jax.jit(program.init, compiler_options=options)
        return network, start, until_stopped(program, self.config)

    def train(
        self, method: str, batch: Batch, seed: int
    ) -> tuple[list[Record], np.ndarray]:
        """Return a network's records, and its logits on all nodes.

        Args:
            method: of the student, or ``"teacher"``.
            batch: the graph; for a student with ``teacher_logits``.
            seed: of the initial weights and the dropout.
        """
        network, start, train = self.compiled(method)
        started = time.perf_counter()
        state = train(start(jax.random.key(seed), batch), batch)
        temperature = SETTINGS[self.name].temperature
        logits, found = measure(network, temperature, state.best, batch)
        values = {name: float(value) for name, value in found.items()}
        seconds = time.perf_counter() - started
        values |= {
            "validation_accuracy": float(state.score),
            "epochs": int(state.steps),
        }
        records = [
            Record(method, seed, metric, float(value), seconds, self.name)
            for metric, value in values.items()
        ]
        return records, np.asarray(logits)


def until_stopped(program: Program, config: Config) -> Callable[[Any, Batch], Any]:
    """Return ``(state, batch) -> state`` after all training, in one compiled loop."""

    def go_on(state: BestState) -> jax.Array:
        return (state.steps < config.epochs) & (state.since < config.patience)

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: BestState, batch: Batch) -> BestState:
        return jax.lax.while_loop(
            go_on, lambda state: program.step(state, batch)[0], state
        )

    return train


def programs(
    config: Config, name: str, method: str, features: int, classes: int
) -> tuple[Network, Program]:
    """Return a setting's teacher or student, and the program that trains it.

    Args:
        config: the optimizers.
        name: of the setting.
        method: of the student, or ``"teacher"``.
        features: of a node.
        classes: of the nodes.
    """
    setting = SETTINGS[name]
    teaches = method == "teacher"
    kind = TEACHERS[name.rpartition("-")[2]] if teaches else "node_mlp"
    network = build(kind, setting, features, classes)
    rate = config.teacher_learning_rate if teaches else setting.learning_rate
    # As PyTorch's Adam: the decay is part of the gradient.
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.adam(rate)
    )
    program = jaxkd.distill(network, None, objective(setting, method), optimizer)
    return network, with_best(_of_the_graph(program), validation_accuracy(network))


def _of_the_graph(program: Program) -> Program:
    """Return the program that leaves the validation nodes' own batch to the score."""

    def graph(batch: Batch) -> Batch:
        return {k: value for k, value in batch.items() if k != "validation_nodes"}

    return program._replace(
        init=lambda key, batch: program.init(key, graph(batch)),
        step=lambda state, batch: program.step(state, graph(batch)),
    )


@functools.cache
def build(kind: str, setting: Setting, features: int, classes: int) -> Network:
    """Return a setting's network; its students share one, and what it compiles to."""
    student = kind == "node_mlp"
    return models.create(
        kind,
        features=features,
        classes=classes,
        hidden=setting.hidden,
        layers=setting.layers,
        dropout=setting.student_dropout if student else setting.teacher_dropout,
    )


def objective(setting: Setting, method: str) -> Method:
    """Return a student's objective, or the teacher's."""
    weight, labels = setting.label_weight, methods.labelled_cross_entropy()
    taught = {
        "glnn": lambda: methods.glnn(weight),
        "low": lambda: methods.combine(
            (weight, labels), (1 - weight, methods.low_frequency())
        ),
        "high": lambda: methods.combine(
            (weight, labels), (1 - weight, methods.high_frequency(setting.temperature))
        ),
        "ffg2m": lambda: methods.ffg2m(weight, setting.temperature),
    }
    return methods.cached(taught[method]()) if method in taught else labels


def validation_nodes(dataset: data.GraphDataset) -> Batch:
    """Return the batch of the nodes to choose by, without edges, for the students.

    A student reads no others, so that these are a small part of the work of scoring it.
    """
    nodes, features = dataset.validation, dataset.graph.features
    sparse = isinstance(features, SparseMatrix)
    rows = features.to_scipy()[nodes].toarray() if sparse else features[nodes]
    none = np.zeros(0, np.int32)
    return {
        "graph": Graph(rows, none, none),
        "label": dataset.label[nodes],
        "validation": np.ones(len(nodes), np.float32),
    }


def validation_accuracy(network: Network) -> Callable[[Any, Batch], jax.Array]:
    """Return ``(state, batch) -> accuracy`` on the nodes to choose by."""

    def score(state: Any, batch: Batch) -> jax.Array:
        batch = batch.get("validation_nodes", batch)
        outputs, _ = network.apply(state.student, batch["graph"])
        return masked_accuracy(outputs.logits, batch, "validation")

    return score


def masked_accuracy(logits: jax.Array, batch: Batch, part: str) -> jax.Array:
    """Return the accuracy on one part of the nodes."""
    right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
    return losses.weighted_mean(right, batch[part])


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(
    network: Network, temperature: float, variables: Variables, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return a network's logits, its test accuracy and how it keeps to its teacher.

    Both frequencies are measured without dropout: the divergence of an edge's
    differences (``high_frequency_kl``) and of a node's answer from its neighbours' in
    the teacher (``low_frequency_kl``), the plain node-wise ``teacher_kl``, and the
    cosine of a node and its neighbours.
    """
    graph: Graph = batch["graph"]
    outputs, _ = network.apply(variables, graph)
    logits, ends = outputs.logits, (graph.senders, graph.receivers)
    values = {
        "test_accuracy": masked_accuracy(logits, batch, "test"),
        "neighbor_cosine": losses.neighbor_cosine(logits, *ends),
    }
    if "teacher_logits" in batch:
        teacher = batch["teacher_logits"]
        both = (logits, teacher)
        values |= {
            "agreement": losses.weighted_mean(
                (logits.argmax(-1) == teacher.argmax(-1)).astype(jnp.float32),
                batch["test"],
            ),
            "teacher_kl": losses.kd_loss(*both, 1.0).mean(),
            "low_frequency_kl": losses.edge_low_frequency_loss(*both, *ends).mean(),
            "high_frequency_kl": losses.edge_high_frequency_loss(
                *both, *ends, temperature
            ).mean(),
        }
    return logits, values


SIZES = {
    "coauthor_physics": (34493, 8415, 1137311, 495924, 5, 500),
}
"""Nodes, features, features that are not 0, directed edges, classes, and the nodes to
choose by."""


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the programs of the largest graph, with its padded batch as shapes."""
    nodes, features, entries, edges, classes, chosen = SIZES["coauthor_physics"]
    nodes, entries, edges, chosen = (
        n + -n % CHIPS for n in (nodes, entries, edges, chosen)
    )

    def array(size: int, dtype: Any = jnp.float32, *axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *axes), dtype)

    index = functools.partial(array, dtype=jnp.int32)
    matrix = SparseMatrix(
        index(entries), index(entries), array(entries), (nodes, features)
    )
    batch = {
        "graph": Graph(matrix, index(edges), index(edges), array(edges, jnp.bool_)),
        "label": index(nodes),
        **{name: array(nodes) for name in ("mask", "labelled", "validation", "test")},
    }
    alone = Graph(array(chosen, jnp.float32, features), index(0), index(0))
    taught = batch | {
        "teacher_logits": array(nodes, jnp.float32, classes),
        "validation_nodes": {
            "graph": alone,
            "label": index(chosen),
            "validation": array(chosen),
        },
    }
    name = "coauthor_physics-gcn"
    return {
        f"{name}/{method}": (programs(config, name, method, features, classes)[1], data)
        for method, data in (("teacher", batch), ("ffg2m", taught))
    }
