"""How scores order S1's networks, and what searches find by them."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.diswot.config import Config
from experiments.diswot.scoring import (
    CELLS,
    Architecture,
    Initial,
    Proxies,
    Scorer,
    depth_space,
    distilled_accuracies,
    diswot_scores,
    scoring_batch,
)
from jaxkd import data, search
from jaxkd.models.vision.nasbench201 import OPERATIONS, format_cell
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record

MAIN = "images, Gaussian init"
SETTINGS: dict[str, tuple[bool, Initial]] = {
    MAIN: (False, "gaussian"),
    "images, default init": (False, "default"),
    "noise, Gaussian init": (True, "gaussian"),
    "noise, default init": (True, "default"),
}
"""Scores' inputs (whether noise) and weights; the first is the paper's."""

DEPTH_SEARCH, CELL_SEARCH = "S1 search", "NAS-Bench-201 search"


def rank(
    config: Config,
    dataset: data.Dataset,
    scorer: Scorer,
    proxies: Proxies,
    setting: str,
    seed: int,
    folder: Path,
) -> list[Record]:
    """Return how each score orders S1, and keep the scores of the main setting."""
    started = time.perf_counter()
    noise, initial = SETTINGS[setting]
    batch = scoring_batch(dataset, config.scored_examples, seed, noise)
    score = scorer.scorer(seed, batch, initial)
    space = depth_space(config).architectures()
    found = diswot_scores([score(architecture) for architecture in space])
    if setting == MAIN:
        np.savez(folder / "scores.npz", diswot=found["diswot"])
        found |= proxies.scores(seed, batch)
    seconds = time.perf_counter() - started
    accuracy = np.array([distilled_accuracies()[a] for a in space])
    return [
        Record(method, seed, metric, value, seconds, setting)
        for method, values in found.items()
        for metric, value in {
            **search.rank_consistency(values, accuracy),
            "chosen_accuracy": float(accuracy[values.argmax()]),
        }.items()
    ]


def saved_scores(config: Config, run: Run, seed: int) -> dict[Architecture, float]:
    """Return the paper's score of each network, as the main setting has found it."""
    with np.load(run.folder / MAIN / f"seed{seed}" / "scores.npz") as file:
        values = file["diswot"]
    return dict(zip(depth_space(config).architectures(), values.tolist(), strict=True))


def searches(
    space: search.ChoiceSpace,
    score: Callable[[Architecture], float],
    evaluations: int,
    population: int,
    tournament: int,
    constraint: Callable[[Architecture], bool] | None = None,
) -> dict[str, Callable[[jax.Array], search.SearchResult]]:
    """Return evolution and random search of the same budget, ``key -> result``."""
    return {
        "evolution": lambda key: search.regularized_evolution(
            key,
            space.random,
            space.mutate,
            score,
            population=population,
            tournament=tournament,
            budget=evaluations,
            constraint=constraint,
        ),
        "random": lambda key: search.random_search(
            key, space.random, score, budget=evaluations, constraint=constraint
        ),
    }


def search_depths(
    config: Config, seed: int, scores: dict[Architecture, float]
) -> list[Record]:
    """Return what both searches find in S1, the mean over repeats."""
    accuracy = distilled_accuracies()
    top, records = max(scores.values()), []
    both = searches(
        depth_space(config),
        scores.__getitem__,
        config.evaluations,
        config.population,
        config.tournament,
    )
    for method, look in both.items():
        started = time.perf_counter()
        keys = jax.random.split(jax.random.key(seed), config.repeats)
        best = [look(key).best for key in keys]
        values = {
            "best_score": np.mean([e.score for e in best]),
            "chosen_accuracy": np.mean([accuracy[e.architecture] for e in best]),
            "best_found": np.mean([e.score == top for e in best]),
        }
        seconds = time.perf_counter() - started
        records += [
            Record(method, seed, metric, float(value), seconds, DEPTH_SEARCH)
            for metric, value in values.items()
        ]
    return records


def multiply_adds(architecture: Architecture) -> float:
    """Return the multiply-adds of a cell's network for one 32x32 image.

    A convolution takes as many in every stage, since channels double as sides halve;
    without one, the network takes the benchmark's 7.78 million.
    """
    kernels = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
    areas = sum(kernels.get(OPERATIONS[i], 0) ** 2 for i in architecture)
    return 7.78e6 + areas * 16**2 * 32**2 * 15


def search_cells(
    config: Config, dataset: data.Dataset, scorer: Scorer, seed: int, folder: Path
) -> list[Record]:
    """Return what both searches find among NAS-Bench-201's cells; keep the cells."""
    score = scorer.scorer(seed, scoring_batch(dataset, config.scored_examples, seed))
    known: dict[Architecture, float] = {}

    def total(architecture: Architecture) -> float:
        if architecture not in known:
            terms = score(architecture)
            known[architecture] = terms["fc_grad"] + terms["relation"]
        return known[architecture]

    both = searches(
        CELLS,
        total,
        config.cell_evaluations,
        config.cell_population,
        config.cell_tournament,
        lambda architecture: multiply_adds(architecture) <= config.cell_multiply_adds,
    )
    records, cells = [], {}
    for method, look in both.items():
        started = time.perf_counter()
        best = look(jax.random.key(seed)).best
        seconds = time.perf_counter() - started
        cells[method] = format_cell([OPERATIONS[i] for i in best.architecture])
        values = {
            "best_score": best.score,
            "multiply_adds": multiply_adds(best.architecture),
        }
        records += [
            Record(method, seed, metric, value, seconds, CELL_SEARCH)
            for metric, value in values.items()
        ]
    (folder / "cells.json").write_text(json.dumps(cells))
    return records
