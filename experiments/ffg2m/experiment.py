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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.common.configs import choose
from experiments.ffg2m.config import (
    METHODS,
    PRESETS,
    PUBLIC_SPLIT,
    SETTINGS,
    TEACHERS,
    Config,
    Setting,
)
from jaxkd import data, losses, methods, models
from jaxkd.graphs import Graph, SparseMatrix
from jaxkd.interop import load_pretrained
from jaxkd.network import Network
from jaxkd.programs import BestState, with_best
from jaxkd.reporting.claims import Claim, all_of, contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.paper import paper_table
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, History, Run, Task, run_arms
from jaxkd.types import Batch, Method, Program, Variables

declare(
    high_frequency_kl=Metric("high-frequency KL", higher_is_better=False),
)

CHIPS = 8

PAPER = paper_table(
    "test_accuracy",
    [name for name in SETTINGS if name.endswith("-gcn")],
    {
        "mlp": "59.6 60.3 73.4 78.7 87.8 88.8",
        "teacher": "81.7 71.6 79.5 90.6 90.0 92.5",
        "glnn": "82.2 71.7 80.2 91.4 92.2 93.1",
        "ffg2m": "84.06 73.85 81.62 91.84 93.35 93.59",
    },
    where="Table 1",
    checked=False,
)
"""Means of five seeds, recalled from the paper and its authors' later work."""

WITH_NUMBERS = ("cora-gcn", "citeseer-gcn")


def mechanism(setting: str) -> list[Claim]:
    """Return what the high-frequency term is to do, and its price in node-wise KL."""
    return [
        all_of(
            f"ffg2m below glnn and low in high-frequency KL ({setting})",
            [
                contrast("ffg2m", other, "high_frequency_kl", setting=setting)
                for other in ("glnn", "low")
            ],
        ),
        contrast("ffg2m", "glnn", "teacher_kl", setting=setting, lower=False),
    ]


CLAIMS = [
    *(
        contrast("ffg2m", other, "test_accuracy", margin, setting=setting)
        for setting in WITH_NUMBERS
        for other, margin in (("mlp", 0.1), ("teacher", 0.005))
    ),
    contrast("ffg2m", "glnn", "test_accuracy", setting="citeseer-gcn"),
    contrast(
        "ffg2m",
        "glnn",
        "test_accuracy",
        0.01,
        "non-inferiority",
        setting="cora-gcn",
        because="the standard deviation of both in an earlier trial was larger",
    ),
    *(claim for setting in WITH_NUMBERS for claim in mechanism(setting)),
    *(
        contrast("ffg2m", worse, "test_accuracy", setting=setting)
        for setting in SETTINGS
        if setting not in WITH_NUMBERS
        for worse in ("mlp", "teacher")
    ),
]


def objectives(setting: Setting) -> dict[str, Method]:
    """Return the teacher's objective and every student's."""
    weight, labels = setting.label_weight, methods.labelled_cross_entropy()
    terms = {
        "low": methods.low_frequency(),
        "high": methods.high_frequency(setting.temperature),
    }
    taught = {
        "glnn": methods.glnn(weight),
        "ffg2m": methods.ffg2m(weight, setting.temperature),
    } | {
        name: methods.combine((weight, labels), (1 - weight, term))
        for name, term in terms.items()
    }
    return {"teacher": labels, "mlp": labels} | {
        name: methods.cached(method) for name, method in taught.items()
    }


def learner(
    config: Config, name: str, method: str, features: int, classes: int
) -> tuple[Network, Program]:
    """Return a setting's teacher or student, and the program that trains it.

    Args:
        config: the optimizer.
        name: of the setting.
        method: of the student, or ``"teacher"``.
        features: of a node.
        classes: of the nodes.
    """
    setting, optimizer = SETTINGS[name], config.optimizer
    kind, dropout = TEACHERS[name.rpartition("-")[2]], setting.teacher_dropout
    if method != "teacher":
        kind, dropout = "node_mlp", setting.student_dropout
        optimizer = replace(optimizer, learning_rate=setting.learning_rate)
    network = models.create(
        kind,
        features=features,
        classes=classes,
        hidden=setting.hidden,
        layers=setting.layers,
        dropout=dropout,
    )
    program = jaxkd.distill(
        network, None, objectives(setting)[method], optimizer.build(config.epochs)
    )
    return network, with_best(_of_the_graph(program), validation_accuracy(network))


def _of_the_graph(program: Program) -> Program:
    """Return the program that leaves the validation nodes' own batch to the score."""

    def graph(batch: Batch) -> Batch:
        return {k: value for k, value in batch.items() if k != "validation_nodes"}

    return program._replace(
        init=lambda key, batch: program.init(key, graph(batch)),
        step=lambda state, batch: program.step(state, graph(batch)),
    )


def until_stopped(program: Program, patience: int) -> Callable:
    """Return a task's loop: all epochs on one graph in one compiled call.

    Args:
        program: to train; a step is an epoch.
        patience: epochs without a better score after which to stop.
    """
    # Init runs once, and takes longer to compile well than to run.
    options = {"xla_backend_optimization_level": 0}
    start = jax.jit(program.init, compiler_options=options)

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: BestState, batch: Batch, steps: int) -> BestState:
        return jax.lax.while_loop(
            lambda state: (state.steps < steps) & (state.since < patience),
            lambda state: program.step(state, batch)[0],
            state,
        )

    def loop(_, batch: Batch, *, key, steps, evaluate, **__) -> tuple[Any, History]:
        state = train(start(key, batch), batch, steps)
        return state, [dict(evaluate(state))]

    return loop


def stopping(state: BestState, history: History) -> dict[str, float]:
    """Return the accuracy that was stopped by, and when that was."""
    return {
        "validation_accuracy": float(state.score),
        "epochs": int(state.steps),
    }


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Return the records by setting, then by seed, then by method.

    Raises:
        ValueError: an unknown setting or method.
        FileNotFoundError: a graph's file is missing.
    """
    choose("method", config.methods, dict.fromkeys(METHODS))
    return [
        record
        for name in choose("setting", config.settings, SETTINGS)
        for record in run_arms(
            setting_arms(name, config), config, seeds, run, anew=True
        )
    ]


def setting_arms(name: str, config: Config) -> Callable:
    """Return the arms of one setting, which are compiled once for all seeds."""
    graph_name = name.rpartition("-")[0]
    dataset = data.load_graph(graph_name)

    @functools.cache
    def compiled(method: str) -> tuple[Network, Program, Callable]:
        features = dataset.graph.features.shape[1]
        network, program = learner(config, name, method, features, dataset.classes)
        return network, program, until_stopped(program, config.patience)

    def row(method: str, batch: Batch) -> tuple[Arm, Task]:
        network, program, loop = compiled(method)

        def evaluate(network: Network) -> Callable[[Variables], dict[str, float]]:
            return lambda variables: jax.tree.map(
                float, measure(network, SETTINGS[name].temperature, variables, batch)
            )

        task = Task(name, lambda _: batch, config.epochs, evaluate, loop=loop)
        return Arm(method, program, network, measure=stopping), task

    def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
        split = dataset if graph_name in PUBLIC_SPLIT else dataset.split(seed)
        batch = jax.tree.map(jnp.asarray, split.batch())
        yield row("teacher", batch)
        # It is trained by now, and kept.
        kept = run.folder / f"{name}/teacher/seed{seed}/student"
        logits = predict(compiled("teacher")[0], load_pretrained(kept)[1], batch)
        nodes = jax.tree.map(jnp.asarray, validation_nodes(split))
        batch |= {"teacher_logits": logits, "validation_nodes": nodes}
        for method in config.methods or METHODS:
            yield row(method, batch)

    return arms


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
        logits = predict(network, state.student, batch)
        return masked_accuracy(logits, batch["label"], batch["validation"])

    return score


def masked_accuracy(logits: jax.Array, label: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the agreement with labels on one part of the nodes."""
    right = (logits.argmax(-1) == label).astype(jnp.float32)
    return losses.weighted_mean(right, mask)


@functools.partial(jax.jit, static_argnums=0)
def predict(network: Network, variables: Variables, batch: Batch) -> jax.Array:
    """Return a network's logits on all nodes."""
    return network.apply(variables, batch["graph"])[0].logits


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(
    network: Network, temperature: float, variables: Variables, batch: Batch
) -> dict[str, jax.Array]:
    """Return a network's test accuracy and how it keeps to its teacher.

    Both frequencies are measured without dropout: the divergence of an edge's
    differences (``high_frequency_kl``) and of a node's answer from its neighbours' in
    the teacher (``low_frequency_kl``), the plain node-wise ``teacher_kl``, and the
    cosine of a node and its neighbours.
    """
    graph, test = batch["graph"], batch["test"]
    logits, ends = predict(network, variables, batch), (graph.senders, graph.receivers)
    found = {
        "test_accuracy": masked_accuracy(logits, batch["label"], test),
        "neighbor_cosine": losses.neighbor_cosine(logits, *ends),
    }
    if "teacher_logits" not in batch:
        return found
    both = (logits, batch["teacher_logits"])
    low = losses.edge_low_frequency_loss(*both, *ends)
    high = losses.edge_high_frequency_loss(*both, *ends, temperature)
    return found | {
        "agreement": masked_accuracy(logits, both[1].argmax(-1), test),
        "teacher_kl": losses.kd_loss(*both, 1.0).mean(),
        "low_frequency_kl": low.mean(),
        "high_frequency_kl": high.mean(),
    }


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the programs of the largest graph, with its padded batch as shapes."""
    features, classes = 8415, 5
    # Nodes, features that are not 0, directed edges, and the nodes to choose by.
    nodes, entries, edges, chosen = (
        n + -n % CHIPS for n in (34493, 1137311, 495924, 500)
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
        f"{name}/{method}": (learner(config, name, method, features, classes)[1], data)
        for method, data in (("teacher", batch), ("ffg2m", taught))
    }


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5, "paper": 10, "medium": 10},
    varies=("teacher", "student", "order"),
)
