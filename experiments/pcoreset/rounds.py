"""One run of active learning: train, ask for labels, train again from the start."""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from experiments.pcoreset.config import Config
from experiments.pcoreset.students import Student
from experiments.pcoreset.tasks import (
    EmbeddedImages,
    teacher_logits,
    teacher_prototypes,
)
from jaxkd import data, training
from jaxkd import selection as active
from jaxkd.checks import unknown_name
from jaxkd.files import write_atomically
from jaxkd.reporting.records import Record
from jaxkd.training.progress import ProgressBar
from jaxkd.types import Variables


@dataclass(frozen=True)
class Learner:
    """One seed of one row of a table.

    Attributes:
        config: of everything.
        task: to learn from.
        setting: the table's name.
        method: the row's.
        teacher: of `teacher_prototypes`.
        selection: how labels are chosen.
        student: how students are trained.
        seed: of the first labels and of all later randomness.
        folder: keeps the rounds that are done.
        progress: a bar to draw on.
    """

    config: Config
    task: EmbeddedImages
    setting: str
    method: str
    teacher: str
    selection: str
    student: Student
    seed: int
    folder: Path
    progress: ProgressBar | None

    def run(self) -> list[Record]:
        """Return the records; rounds that are on disk are not done again."""
        log = self.folder / "rounds.json"
        rounds = json.loads(log.read_text()) if log.is_file() else []
        labelled, unlabelled = active.initial_pool(
            self.task.labels, self.config.labels_per_class, self.seed
        )
        # The few-shot teacher is fitted after a round's student, for the next one.
        taught = labelled
        for number in range(self.config.rounds + 1):
            if number == len(rounds):
                rounds.append(self.play(number, labelled, unlabelled, taught))
                write_atomically(log, json.dumps(rounds))
            taught = labelled
            picks = np.asarray(rounds[number]["picks"], int)
            labelled, unlabelled = active.label_picked(labelled, unlabelled, picks)
        return self.records(rounds)

    def play(
        self,
        number: int,
        labelled: np.ndarray,
        unlabelled: np.ndarray,
        taught: np.ndarray,
    ) -> dict[str, Any]:
        """Train a student on the labels that are known, and choose the next.

        Args:
            number: of the round, from 0.
            labelled: positions of the examples whose labels are known.
            unlabelled: the others.
            taught: those whose labels the few-shot teacher knows.

        Returns:
            ``accuracy``, ``seconds``, the ``picks`` (positions in ``unlabelled``; none
            in the last round), and measurements.
        """
        started = time.perf_counter()
        key = jax.random.fold_in(jax.random.key(self.seed), number)
        teaching, fitting, selecting = jax.random.split(key, 3)
        source, found = self.task.train, {}
        if self.student.distilled:
            logits, found["teacher_accuracy"] = self.taught_by(taught, teaching)
            source = data.Joined(source, {"teacher_logits": logits})
        variables = self.train(source, number, labelled, unlabelled, fitting)
        found["accuracy"] = self.student.evaluate(variables)["accuracy"]
        picks = np.zeros(0, int)
        if number < self.config.rounds:
            picks, measured = self.choose(
                variables, number, labelled, unlabelled, selecting
            )
            found |= measured
        seconds = time.perf_counter() - started
        return {**found, "picks": picks.tolist(), "seconds": seconds}

    def taught_by(
        self, labelled: np.ndarray, key: PRNGKeyArray
    ) -> tuple[np.ndarray, float]:
        """Return the teacher's logits for the pool, and its accuracy on the test."""
        config, task = self.config, self.task
        prototypes = teacher_prototypes(config, task, self.teacher, labelled, key)
        answers = teacher_logits(config, task.test_features, prototypes).argmax(-1)
        accuracy = float(np.mean(answers == task.test_labels))
        return teacher_logits(config, task.features, prototypes), accuracy

    def train(
        self,
        source: Any,
        number: int,
        labelled: np.ndarray,
        unlabelled: np.ndarray,
        key: PRNGKeyArray,
    ) -> Variables:
        """Return a student's variables after a round's training."""
        config, size = self.config, self.config.batch_size
        steps = config.steps(len(labelled), len(unlabelled))
        batches = data.semi_supervised_batches(
            source,
            labelled,
            unlabelled,
            (size, size if self.student.distilled else 0),
            steps=steps,
            seed=1000 * self.seed + number,
            transform=self.task.transform,
        )
        checkpoints = None
        if config.checkpoint_every:
            checkpoints = training.Checkpoints(self.folder / f"round{number}", keep=1)
        with checkpoints or nullcontext():
            state, _ = training.fit(
                self.student.program(steps),
                batches,
                key=key,
                steps=steps,
                checkpoints=checkpoints,
                checkpoint_every=config.checkpoint_every or None,
                progress=self.progress,
                name=f"{self.method} seed {self.seed} round {number}",
            )
        return state.student

    def choose(
        self,
        variables: Variables,
        number: int,
        labelled: np.ndarray,
        unlabelled: np.ndarray,
        key: PRNGKeyArray,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Return positions in ``unlabelled``, and how the first choice covers them."""
        config, task = self.config, self.task
        candidates = np.arange(len(unlabelled))
        if 0 < config.candidates < len(unlabelled):
            rng = np.random.default_rng([self.seed, number])
            candidates = rng.permutation(len(unlabelled))[: config.candidates]
        pool = self.student.predict(variables, unlabelled[candidates])
        centers = self.student.predict(variables, labelled)
        chosen = select(
            self.selection,
            key,
            pool,
            centers,
            task.labels[labelled],
            config.queries or task.train.classes,
        )
        measured = {}
        if number == 0:
            ends = np.concatenate([centers[0], pool[0][chosen]])
            radius = active.cover_radius(jnp.asarray(pool[0]), jnp.asarray(ends))
            measured["cover_radius"] = float(radius)
            if self.selection == "pcoreset":
                measured["cover_ratio"] = worst_cover_ratio(
                    pool[0], centers[0], self.seed
                )
        return candidates[chosen], measured

    def records(self, rounds: list[dict]) -> list[Record]:
        """Return the run's numbers: accuracy over the rounds, and the first cover."""
        curve = tuple(entry["accuracy"] for entry in rounds)
        values = {
            "last_accuracy": curve[-1],
            "mean_accuracy": float(np.mean(curve)),
            **{f"round{i}_accuracy": x for i, x in enumerate(curve[:-1])},
        }
        for name, entry in (
            ("cover_radius", rounds[0]),
            ("cover_ratio", rounds[0]),
            ("teacher_accuracy", rounds[-1]),
        ):
            if name in entry:
                values[name] = entry[name]
        seconds = sum(entry["seconds"] for entry in rounds)
        return [
            Record(
                self.method,
                self.seed,
                metric,
                float(value),
                seconds,
                self.setting,
                curve if metric == "last_accuracy" else (),
            )
            for metric, value in values.items()
        ]


def select(
    selection: str,
    key: PRNGKeyArray,
    pool: tuple[np.ndarray, np.ndarray],
    labelled: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    q: int,
) -> np.ndarray:
    """Return positions in the pool of the examples to label next.

    Args:
        selection: one of ``SELECTIONS``.
        key: of what is random.
        pool: probabilities and features of the unlabelled examples.
        labelled: the same of the labelled ones.
        labels: of the labelled examples.
        q: how many.

    Raises:
        ValueError: an unknown selection.
    """
    probs, features = map(jnp.asarray, pool)
    labelled_probs, labelled_features = map(jnp.asarray, labelled)
    strategies = {
        "random": lambda: active.random_select(key, len(probs), q),
        "entropy": lambda: active.entropy_select(probs, q),
        "coreset": lambda: active.coreset_select(features, labelled_features, q),
        "badge": lambda: active.badge_select(key, probs, features, q),
        "class-balanced": lambda: active.class_balanced_select(
            key, probs, jnp.asarray(labels), q
        ),
        "pcoreset": lambda: active.pcoreset_select(probs, labelled_probs, q),
    }
    if selection not in strategies:
        raise ValueError(unknown_name("selection", selection, strategies))
    return np.asarray(strategies[selection]())


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
