"""How scores order S1's networks, and what searches find by them."""

import itertools
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification
from experiments.diswot.config import Architecture, Config, SearchConfig
from jaxkd import search
from jaxkd.digests import verify_digests, write_digests
from jaxkd.evaluation.cost import forward_cost, parameter_count
from jaxkd.models.vision.nasbench201 import OPERATIONS, format_cell, multiply_adds
from jaxkd.network import Network
from jaxkd.papers.diswot import Scorer
from jaxkd.papers.diswot.scorer import Initial
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Clock, Run, records
from jaxkd.types import Batch

CELLS = search.ChoiceSpace(tuple(range(len(OPERATIONS))), 6)
"""NAS-Bench-201: the operation on each edge of a cell."""

MAIN = "images, Gaussian init"
SETTINGS: dict[str, tuple[bool, Initial]] = {
    MAIN: (False, "gaussian"),
    "images, default init": (False, "default"),
    "noise, Gaussian init": (True, "gaussian"),
    "noise, default init": (True, "default"),
}
"""Scores' inputs (whether noise) and weights; the first is the paper's."""

NOISE = 2**20
"""A position that no student has, for the draw of noise."""

DEPTH_SEARCH, CELL_SEARCH = "S1 search", "NAS-Bench-201 search"


@cache
def distilled_accuracies() -> dict[Architecture, float]:
    """Return S1's accuracies on CIFAR-100 after distillation, as fractions.

    Dong et al. 2023 (arXiv:2303.15678) publish all 64, and those of plain training.
    """
    path = Path(__file__).parent / "s1_accuracies.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    return {
        tuple(map(int, blocks)): float(accuracy) / 100
        for *blocks, _, accuracy in table.tolist()
    }


def scoring_batch(images: Classification, seed: int, noise: bool = False) -> Batch:
    """Return random crops of training images, or normal noise, with labels."""
    batch = next(iter(images.batches(seed, epochs=1)))
    image, label = jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
    if noise:
        key = jax.random.fold_in(jax.random.key(seed), NOISE)
        image = jax.random.normal(key, image.shape)
    return {"image": image, "label": label}


def depth_net(config: Config, images: Classification, blocks: int) -> search.Supernet:
    """Return ResNets of up to that many blocks a stage."""
    channels = images.image_shape[-1]
    return search.depth_supernet(
        blocks, images.classes, widths=config.widths, channels_in=channels
    )


def scorer(config: Config, images: Classification, space: search.ChoiceSpace) -> Scorer:
    """Return what scores S1 or NAS-Bench-201 against an untrained ResNet."""
    blocks = (config.teacher_depth - 2) // 6
    if space == CELLS:
        # The metric on gradients wants as many channels as the teacher has.
        students = search.cell_supernet(
            images.classes,
            channels=config.widths[-1] // 4,
            cells=config.cells,
            channels_in=images.image_shape[-1],
        )
    else:
        students = depth_net(config, images, max(space.choices))
    return Scorer(space, students, depth_net(config, images, blocks), (blocks,) * 3)


def diswot_scores(terms: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Return every form of the score, one value an architecture."""
    columns = {name: np.array([row[name] for row in terms]) for name in terms[0]}
    semantic, relation = columns["fc_grad"], columns["relation"]
    return {
        "semantic": semantic,
        "semantic_cam": columns["cam"],
        "semantic_channel": columns["channel"],
        "relation": relation,
        "diswot": semantic + relation,
        "diswot_ranks": search.rank_sum(semantic, relation),
    }


def size_scores(config: Config, images: Classification) -> dict[str, np.ndarray]:
    """Return S1's baselines that need no weights.

    Each block of a stage but its first costs the same, so four networks tell all costs.
    """
    architectures = np.array(config.space.architectures())

    def everywhere(measure: Callable[[Network], float]) -> np.ndarray:
        base, *longer = (
            measure(config.resnet(depths, images.classes, images.image_shape[-1]))
            for depths in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2))
        )
        return base + (architectures - 1) @ (np.array(longer) - base)

    return {
        "depth": architectures.sum(1).astype(float),
        "parameters": everywhere(parameter_count),
        "flops": everywhere(
            lambda net: forward_cost(net, (1, *images.image_shape)).flops
        ),
    }


def proxies(
    config: Config, images: Classification
) -> Callable[[int, Batch], dict[str, np.ndarray]]:
    """Return ``(seed, batch) ->`` S1's zero-cost proxies, at the usual init."""
    net, sizes = (
        depth_net(config, images, max(config.choices)),
        size_scores(config, images),
    )
    draw, measure = search.jit_once(net.init), search.zero_cost(net)

    def scores(seed: int, batch: Batch) -> dict[str, np.ndarray]:
        rows = [
            measure(draw(jax.random.fold_in(jax.random.key(seed), i)), network, batch)
            for i, network in enumerate(config.space.architectures())
        ]
        return sizes | {name: np.array([r[name] for r in rows]) for name in rows[0]}

    return scores


def rank(
    config: Config, images: Classification, run: Run, seeds: Sequence[int]
) -> list[Record]:
    """Return how each score orders S1, and keep the scores of the main setting."""
    space, found = config.space.architectures(), []
    accuracy = np.array([distilled_accuracies()[a] for a in space])
    scored, others = scorer(config, images, config.space), proxies(config, images)

    def ranked(setting: str, seed: int, folder: Path) -> list[Record]:
        noise, initial = SETTINGS[setting]
        with Clock(folder) as clock:
            batch = scoring_batch(images, seed, noise)
            score = scored.against(jax.random.key(seed), batch, initial)
            scores = diswot_scores([score(architecture) for architecture in space])
            if setting == MAIN:
                np.savez(folder / "scores.npz", diswot=scores["diswot"])
                write_digests(folder, ["scores.npz"])
                scores |= others(seed, batch)
            seconds = clock.seconds
        rows = []
        for method, values in scores.items():
            measured = search.rank_consistency(values, accuracy)
            chosen = {"chosen_accuracy": float(accuracy[values.argmax()])}
            rows += records(setting, method, seed, measured | chosen, seconds)
        return rows

    for setting, seed in itertools.product(SETTINGS, seeds):
        found += run.part(f"{setting}/seed{seed}", partial(ranked, setting, seed))
    return found


def saved_scores(config: Config, run: Run, seed: int) -> dict[Architecture, float]:
    """Return the paper's score of each network, as the main setting has found it."""
    folder = run.folder / MAIN / f"seed{seed}"
    verify_digests(folder, ["scores.npz"])
    with np.load(folder / "scores.npz") as file:
        values = file["diswot"]
    return dict(zip(config.space.architectures(), values.tolist(), strict=True))


def searches(
    space: search.ChoiceSpace,
    score: Callable[[Architecture], float],
    budget: SearchConfig,
    constraint: Callable[[Architecture], bool] | None = None,
) -> dict[str, Callable[[jax.Array], search.SearchResult]]:
    """Return evolution and random search of the same budget, ``key -> result``."""
    evaluations = {"budget": budget.evaluations, "constraint": constraint}
    return {
        "evolution": lambda key: search.regularized_evolution(
            key,
            space.random,
            space.mutate,
            score,
            population=budget.population,
            tournament=budget.tournament,
            **evaluations,
        ),
        "random": lambda key: search.random_search(
            key, space.random, score, **evaluations
        ),
    }


def search_depths(
    config: Config, scores: dict[Architecture, float], seed: int, folder: Path
) -> list[Record]:
    """Return what both searches find in S1, the mean over repeats."""
    accuracy, top, found = distilled_accuracies(), max(scores.values()), []
    both = searches(config.space, scores.__getitem__, config.search)
    for method, look in both.items():
        with Clock(folder / method) as clock:
            keys = jax.random.split(jax.random.key(seed), config.repeats)
            best = [look(key).best for key in keys]
            values = {
                "best_score": np.mean([e.score for e in best]),
                "chosen_accuracy": np.mean([accuracy[e.architecture] for e in best]),
                "best_found": np.mean([e.score == top for e in best]),
            }
            found += records(DEPTH_SEARCH, method, seed, values, clock.seconds)
    return found


def search_cells(
    config: Config, images: Classification, scored: Scorer, seed: int, folder: Path
) -> list[Record]:
    """Return what both searches find among NAS-Bench-201's cells; keep the cells."""
    score = scored.against(jax.random.key(seed), scoring_batch(images, seed))

    @cache
    def total(architecture: Architecture) -> float:
        terms = score(architecture)
        return terms["fc_grad"] + terms["relation"]

    def names(architecture: Architecture) -> list[str]:
        return [OPERATIONS[i] for i in architecture]

    def allowed(architecture: Architecture) -> bool:
        return multiply_adds(names(architecture)) <= config.cell_multiply_adds

    found, cells = [], {}
    for method, look in searches(CELLS, total, config.cell_search, allowed).items():
        with Clock(folder / method) as clock:
            best = look(jax.random.key(seed)).best
            cell = names(best.architecture)
            values = {"best_score": best.score, "multiply_adds": multiply_adds(cell)}
            found += records(CELL_SEARCH, method, seed, values, clock.seconds)
        cells[method] = format_cell(cell)
    (folder / "cells.json").write_text(json.dumps(cells))
    return found
