"""What every example is worth, by networks that are trained for that alone."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxkd
from experiments.common.classification import Classification
from experiments.data_pruning.config import NETWORKS, Config
from jaxkd import data, selection
from jaxkd.evaluation.classification import example_labels, predictor
from jaxkd.methods import cross_entropy
from jaxkd.network import Network
from jaxkd.selection import Pool, Seen, Select
from jaxkd.training import fit

RULES: dict[str, tuple[str, Select]] = {
    "random": ("", selection.random_select),
    "el2n": ("el2n", selection.top_select),
    "el2n easy": ("el2n", partial(selection.top_select, keep="lowest")),
    "el2n balanced": ("el2n", partial(selection.top_select, balanced=True)),
    "grand": ("grand", selection.top_select),
    "forgetting": ("forgetting", selection.top_select),
    "memorization": ("memorization", selection.top_select),
    "aum": ("aum", partial(selection.top_select, keep="lowest")),
    "ccs": ("aum", partial(selection.ccs_select, hard="lowest")),
    "herding": ("", selection.herding_select),
    "moderate": ("moderate", partial(selection.top_select, keep="lowest")),
}
"""The rules of pruning: what they score by, and how they choose."""


def batches(config: Config, images: Classification, source: Any, seed: int) -> Any:
    """Return as many batches as there are steps, whatever the size of the source.

    Where it has fewer examples than a batch, a batch has all of them.
    """
    size = min(config.task.batch_size, len(source))
    epochs = -(-config.steps // (len(source) // size))
    return data.batches(
        source, size, epochs=epochs, seed=seed, transform=images.transform
    )


def pools(
    config: Config, images: Classification, teacher: Network, seed: int, file: Path
) -> dict[str, Pool]:
    """Return what each rule chooses among; scores are kept in a file.

    Args:
        config: of everything.
        images: all of them are scored.
        teacher: with its variables; its features are those of `Pool`.
        seed: of the networks that score.
        file: keeps the scores.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays: Any = scores(config, images, teacher, seed)
        np.savez(file, **arrays)
    with np.load(file) as kept:
        found = dict(kept)
    known = Pool(labels=found["labels"], features=found["features"])
    return {
        rule: known._replace(scores=found.get(score))
        for rule, (score, _) in RULES.items()
        if not score or score in found
    }


def scores(
    config: Config, images: Classification, teacher: Network, seed: int
) -> dict[str, np.ndarray]:
    """Return the scores that the rules need, the labels and the teacher's features."""
    scoring, train = config.scoring, images.train
    network = NETWORKS[config.network].build(images.classes)
    optimizer = config.optimizer.build(config.steps)
    program = jaxkd.distill(network, None, cross_entropy(), optimizer)
    labels = example_labels(train)
    predict = predictor(network, train, transform=images.test_transform)
    seeds = iter(range(1000 * (seed + 1), 1000 * (seed + 2)))

    def learn(steps: int, source: Any = train, **options: Any) -> Any:
        key = next(seeds)
        found = batches(config, images, source, key)
        state, _ = fit(program, found, key=jax.random.key(key), steps=steps, **options)
        return jax.device_get(state.student)

    last = [teacher.init(jax.random.key(0))]
    options: Any = {"transform": images.test_transform}
    learnt = selection.observe(teacher, last, train, tap="pooled", **options)
    found: dict[str, Any] = {
        "labels": labels,
        "features": learnt.features[0],
        "moderate": selection.moderate_scores(learnt),
    }
    needed = {RULES[rule][0] for rule in config.rules or RULES}
    early: list[Any] = []
    if needed & {"el2n", "grand"}:
        early = [learn(scoring.steps) for _ in range(scoring.runs)]
        seen = selection.observe(network, early, train, **options)
        found["el2n"] = selection.el2n_scores(seen)
    if "grand" in needed:
        norms = selection.gradient_norms(
            network, early, train, batch_size=scoring.chunk, **options
        )
        found["grand"] = selection.grand_scores(Seen(labels, gradient_norms=norms))
    if needed & {"forgetting", "aum"}:
        watched: list[np.ndarray] = []

        def watch(state: Any) -> dict[str, float]:
            watched.append(predict(state.student))
            return {}

        every = config.steps // scoring.evaluations
        learn(config.steps, evaluate=watch, evaluate_every=every)
        seen = Seen(labels, np.stack(watched))
        found["forgetting"] = selection.forgetting_scores(seen)
        found["aum"] = selection.aum_scores(seen)
    if "memorization" in needed:
        rng = np.random.default_rng(seed)
        inside = rng.random((scoring.subsets, len(labels))) < scoring.share
        right = [
            predict(learn(config.steps, data.Subset(train, np.flatnonzero(row))))
            for row in inside
        ]
        seen = Seen(labels, np.stack(right), in_subset=inside)
        found["memorization"] = selection.memorization_scores(seen)
    return {name: np.asarray(value) for name, value in found.items()}
