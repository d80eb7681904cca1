"""DisWOT's experiment: its data, what searches find, and a run on a space of eight."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.diswot.config import SearchConfig
from experiments.diswot.experiment import EXPERIMENT, chosen
from experiments.diswot.searching import (
    SETTINGS,
    distilled_accuracies,
    search_depths,
)
from jaxkd.reporting.run import Run

SMALL = EXPERIMENT.presets["small"]
BRIEF = SearchConfig(6, 4, 2)
TINY = replace(
    SMALL,
    scored=replace(SMALL.scored, dataset="digits", batch_size=8),
    choices=(1, 3),
    widths=(4, 4, 4, 8),
    cells=1,
    teacher_depth=8,
    search=BRIEF,
    repeats=3,
    cell_search=BRIEF,
    timed_student=(1, 1, 1),
    timed_steps=1,
    task=replace(SMALL.task, epochs=1),
    teachers=(8,),
    students=("found",),
    methods=("diswot",),
)


def test_the_published_table_and_its_figures():
    accuracies = distilled_accuracies()
    assert list(accuracies) == SMALL.space.architectures()
    assert max(accuracies, key=accuracies.__getitem__) == (5, 5, 7)
    assert accuracies[5, 5, 7] == pytest.approx(0.7486)
    assert accuracies[3, 3, 3] == pytest.approx(0.7076)


def test_a_perfect_score_finds_the_best_student(tmp_path: Path):
    scores = distilled_accuracies()
    found = search_depths(SMALL, scores, 0, tmp_path)
    records = {(r.method, r.metric): r.value for r in found}
    best = max(scores.values())
    for method in ("evolution", "random"):
        score = records[method, "best_score"]
        assert records[method, "chosen_accuracy"] == pytest.approx(score)
        assert 0.7 < score <= best
        assert 0 < records[method, "best_found"] <= 1
    names = chosen(replace(SMALL, students=("found", "median", "5-5-7")), scores)
    assert names["found"] == names["5-5-7"] == (5, 5, 7)
    ranked = sorted(scores.values())
    assert scores[names["median"]] == ranked[32]


@pytest.fixture
def quick_compiler():
    """Leave LLVM's optimisation out: everything is compiled and run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_a_shrunk_run_has_records_of_everything(tmp_path, quick_compiler):
    records = EXPERIMENT.records(TINY, (0,), Run(tmp_path))
    assert all(np.isfinite(r.value) for r in records if r.metric != "spearman")
    found = {(r.setting, r.method) for r in records}
    for setting in SETTINGS:
        assert (setting, "diswot") in found
        assert (setting, "semantic_cam") in found
    for proxy in ("depth", "parameters", "flops", "grad_norm", "snip", "nwot"):
        assert ("images, Gaussian init", proxy) in found
    assert ("distillation, ResNet-8", "found diswot") in found
    for setting in ("S1 search", "NAS-Bench-201 search"):
        assert {(setting, "evolution"), (setting, "random")} <= found
    assert all(claim.applies(records) for claim in EXPERIMENT.claims)
