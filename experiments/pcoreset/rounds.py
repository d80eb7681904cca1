"""Rounds of active learning: train, ask for labels, train again from the start."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from experiments.common.configs import choose
from experiments.pcoreset.config import STUDENTS, Config
from experiments.pcoreset.images import (
    EmbeddedImages,
    teacher_accuracy,
    teacher_logits,
    teacher_prototypes,
)
from jaxkd import data, distill, methods, networks, selection
from jaxkd.evaluation.classification import evaluator, labelled_inputs
from jaxkd.interop import load_torch_resnet
from jaxkd.network import Network
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Clock, Run, Task, records
from jaxkd.types import Inputs, Program, Variables

Predictions = tuple[np.ndarray, np.ndarray]
"""Probabilities (examples, classes) and pooled features (examples, features)."""


def student_network(config: Config, classes: int) -> Network:
    """Return the student's network, pre-trained where the configuration has weights.

    Raises:
        ValueError: an unknown student.
        FileNotFoundError: the weights are not there.
    """
    known, _ = choose("student", [config.student], STUDENTS)[config.student]
    network = known.build(classes)
    if not config.weights:
        return network
    _, found = load_torch_resnet(data.data_file(config.weights))

    def init(key: PRNGKeyArray) -> Variables:
        head = network.init(key)["params"]["fc"]
        return {"params": {**found["params"], "fc": head}, "stats": found["stats"]}

    return replace(network, init=init, spec=None)


def two_heads(
    config: Config,
    network: Network,
    classes: int,
    alpha: float = 0.5,
    beta: float = 1.0,
) -> Network:
    """Return the student's network with a head for labels and one for the teacher."""
    features = STUDENTS[config.student][1]
    return networks.dual_head(network, features, classes, alpha=alpha, beta=beta)


def activekd(config: Config, network: Network, classes: int, steps: int) -> Program:
    """Return the program of ActiveKD: a student of two heads and a cached teacher."""
    student, method = two_heads(config, network, classes), methods.cached(methods.dho())
    return distill(student, None, method, config.optimizer.build(steps))


@dataclass(frozen=True)
class Round:
    """What is known in a round of one run.

    Attributes:
        number: from 0.
        seed: of the run.
        rule: by which the next labels are chosen, one of `selections`.
        labelled: positions in the pool of the examples whose labels are known.
        unlabelled: the others.
        taught: those whose labels the few-shot teacher knows.
    """

    number: int
    seed: int
    rule: str
    labelled: np.ndarray
    unlabelled: np.ndarray
    taught: np.ndarray

    def after(self, picks: np.ndarray) -> "Round":
        """Return the next round, in which the picks are labelled.

        The few-shot teacher is fitted after a round's student, for the next one.
        """
        known = selection.label_picked(self.labelled, self.unlabelled, picks)
        return Round(self.number + 1, self.seed, self.rule, *known, self.labelled)


@dataclass(frozen=True, eq=False)
class Learner:
    """What trains, tests and asks the students of some rows; compiled once for all.

    Attributes:
        config: of everything.
        images: to learn from.
        teacher: ``zero-shot`` or ``few-shot``; empty for labels alone.
        ce_share: α when a student with a teacher is tested.
    """

    config: Config
    images: EmbeddedImages
    teacher: str = ""
    ce_share: float = 1.0

    @cached_property
    def network(self) -> Network:
        """The student's network, with its head for labels."""
        return student_network(self.config, self.images.train.classes)

    def predicting(self, alpha: float = 0.5, beta: float = 1.0) -> Network:
        """Return the network that predicts: if there is a teacher, by both heads."""
        if not self.teacher:
            return self.network
        classes = self.images.train.classes
        return two_heads(self.config, self.network, classes, alpha, beta)

    @cached_property
    def program(self) -> Callable[[int], Program]:
        """``steps ->`` the program that trains a student."""
        config, classes = self.config, self.images.train.classes

        @cache
        def made(steps: int) -> Program:
            if self.teacher:
                return activekd(config, self.network, classes, steps)
            optimizer = config.optimizer.build(steps)
            return distill(self.network, None, methods.cross_entropy(), optimizer)

        # A schedule that knows no end needs no program of its own.
        constant = config.optimizer.schedule == "constant"
        return lambda steps: made(1 if constant else steps)

    @cached_property
    def test(self) -> Callable[[Any], dict[str, float]]:
        """``state -> metrics`` on the test images."""
        beta, transform = self.config.kd_temperature, self.images.transform
        deployed = self.predicting(alpha=self.ce_share, beta=beta)
        return evaluator(deployed, self.images.test, transform=transform)

    @cached_property
    def predict(self) -> Callable[[Variables, np.ndarray], Predictions]:
        """``(variables, positions in the pool) ->`` predictions to select by."""
        network, images = self.predicting(), self.images

        @jax.jit
        def forward(variables: Variables, inputs: Inputs):
            outputs, _ = network.apply(variables, inputs, taps=("pooled",))
            return jax.nn.softmax(outputs.logits), outputs.features["pooled"]

        def predict(variables: Variables, positions: np.ndarray) -> Predictions:
            chosen: Any = data.Subset(images.train, positions)
            batches = labelled_inputs(network, chosen, 256, images.transform)
            found = [
                jax.device_get(forward(variables, inputs)) for inputs, _ in batches
            ]
            probs, features = map(np.concatenate, zip(*found, strict=True))
            # The last batch was filled up.
            return probs[: len(positions)], features[: len(positions)]

        return predict

    def learn(
        self, run: Run, setting: str, method: str, rule: str, seed: int
    ) -> list[Record]:
        """Return a run's accuracies over the rounds, and how its first labels cover.

        Args:
            run: keeps the rounds that are done.
            setting: the table's name.
            method: the row's.
            rule: of `Round`.
            seed: of the first labels and of all later randomness.
        """
        labelled, unlabelled = selection.initial_pool(
            self.images.labels, self.config.labels_per_class, seed
        )
        now = Round(0, seed, rule, labelled, unlabelled, taught=labelled)
        rounds: list[dict[str, Record]] = []
        for number in range(self.config.rounds + 1):
            if number:
                picks = rounds[-1]["picks"]
                now = now.after(np.array(picks.curve or [picks.value], int))
            # Students without a teacher are the same in every table, and trained once.
            part = f"{self.teacher or 'labels'}/{method}/seed{seed}/round{number}"
            found = run.part(part, partial(self.play, run, part, now))
            rounds.append({record.metric: record for record in found})
        curve = [found["accuracy"].value for found in rounds]
        values: dict[str, Any] = {
            "last_accuracy": curve,
            "mean_accuracy": float(np.mean(curve)),
            **{f"round{i}_accuracy": value for i, value in enumerate(curve[:-1])},
        }
        for metric, found in (
            ("cover_radius", rounds[0]),
            ("cover_ratio", rounds[0]),
            ("teacher_accuracy", rounds[-1]),
        ):
            if metric in found:
                values[metric] = found[metric].value
        seconds = sum(found["accuracy"].wall_time for found in rounds)
        return records(setting, method, seed, values, seconds)

    def play(self, run: Run, name: str, now: Round, folder: Path) -> list[Record]:
        """Return one round's accuracies, its picks, and how the first of them cover.

        The picks are positions in ``now.unlabelled``; the last round has none.
        """
        config, images = self.config, self.images
        key = jax.random.fold_in(jax.random.key(now.seed), now.number)
        teaching, selecting = jax.random.split(key)
        size = config.batch_size
        with Clock(folder) as clock:
            source, values = self.taught(now, teaching)
            steps = config.steps(len(now.labelled), len(now.unlabelled))
            task = Task(
                "",
                lambda seed: data.semi_supervised_batches(
                    source,
                    now.labelled,
                    now.unlabelled,
                    (size, size if self.teacher else 0),
                    steps=steps,
                    seed=seed,
                    transform=images.transform,
                ),
                steps,
                checkpoint_every=config.checkpoint_every or None,
            )
            # The same for every row of a seed, which thus share the first round.
            seed = 1000 * now.seed + now.number
            program = self.program(steps)
            state, history = run.fit(program, task, seed, folder, name, self.test)
            values["accuracy"] = history[-1]["accuracy"]
            if now.number < config.rounds:
                values |= self.ask(state.student, now, selecting)
        return records("", "", now.seed, values, clock.seconds)

    def taught(self, now: Round, key: PRNGKeyArray) -> tuple[Any, dict[str, Any]]:
        """Return the pool with the teacher's logits beside it, and its accuracy."""
        config, images = self.config, self.images
        if not self.teacher:
            return images.train, {}
        known = teacher_prototypes(config, images, self.teacher, now.taught, key)
        logits = teacher_logits(config, images.features, known)
        accuracy = teacher_accuracy(config, images, known)
        source = data.Joined(images.train, {"teacher_logits": logits})
        return source, {"teacher_accuracy": accuracy}

    def ask(
        self, variables: Variables, now: Round, key: PRNGKeyArray
    ) -> dict[str, Any]:
        """Return the ``picks``, and of the first round how they cover the pool."""
        config, candidates = self.config, np.arange(len(now.unlabelled))
        if 0 < config.candidates < len(candidates):
            rng = np.random.default_rng([now.seed, now.number])
            candidates = rng.permutation(candidates)[: config.candidates]
        pool = self.predict(variables, now.unlabelled[candidates])
        known = self.predict(variables, now.labelled)
        labels, q = self.images.labels[now.labelled], config.queries
        rules = selections(key, pool, known, labels, q or self.images.train.classes)
        picks = np.asarray(rules[now.rule]())
        found: dict[str, Any] = {"picks": candidates[picks].tolist()}
        if now.number == 0:
            centers = np.concatenate([known[0], pool[0][picks]])
            radius = selection.cover_radius(jnp.asarray(pool[0]), jnp.asarray(centers))
            found["cover_radius"] = float(radius)
            if now.rule == "pcoreset":
                found["cover_ratio"] = worst_cover_ratio(pool[0], known[0], now.seed)
        return found


def selections(
    key: PRNGKeyArray,
    pool: Predictions,
    labelled: Predictions,
    labels: np.ndarray,
    q: int,
) -> dict[str, Callable[[], Any]]:
    """Return functions that pick the examples to label next, by their rules' names.

    Args:
        key: of what is random.
        pool: predictions for the unlabelled examples.
        labelled: predictions for the labelled ones.
        labels: of the labelled examples.
        q: how many to pick.
    """
    known = selection.Pool(
        *pool,
        chosen_probs=labelled[0],
        chosen_features=labelled[1],
        chosen_labels=labels,
    )
    rules = {
        "random": selection.random_select,
        "entropy": selection.entropy_select,
        "coreset": selection.coreset_select,
        "badge": selection.badge_select,
        "class-balanced": selection.class_balanced_select,
        "pcoreset": selection.pcoreset_select,
    }
    return {name: partial(rule, key, known, q) for name, rule in rules.items()}


def worst_cover_ratio(probs: np.ndarray, centers: np.ndarray, seed: int) -> float:
    """Return the worst of 20 greedy covers' radii over the optimum's.

    Args:
        probs: predictions, of which each instance draws 12 points.
        centers: predictions, of which each instance draws 2 given centres.
        seed: of the draws. Each instance picks 3 points; the optimum tries all triples.
    """
    rng, ratios = np.random.default_rng(seed), []
    for _ in range(20):
        points = probs[rng.choice(len(probs), 12, replace=False)]
        given = centers[rng.choice(len(centers), 2, replace=False)]
        ends = np.concatenate([given, points]).astype(np.float64)
        distances = np.linalg.norm(points[:, None] - ends, axis=-1)

        def radius(picks: Any, distances: np.ndarray = distances) -> float:
            return distances[:, [0, 1, *(2 + i for i in picks)]].min(1).max()

        greedy = selection.k_center_greedy(jnp.asarray(points), jnp.asarray(given), 3)
        best = min(map(radius, combinations(range(12), 3)))
        ratios.append(radius(greedy.tolist()) / best)
    return float(max(ratios))
