"""DisWOT's experiment: its data and protocol, and a run on a space of eight."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.diswot.experiment import (
    CLAIMS,
    PRESETS,
    SETTINGS,
    full_scale,
    run,
)
from experiments.diswot.scoring import CELLS, Images, Scorer, distilled_accuracies
from experiments.diswot.searching import multiply_adds, search_depths
from experiments.diswot.students import PROTOCOL_STEPS, chosen, objectives
from jaxkd.reporting.experiment import Run
from jaxkd.search import ChoiceSpace

TINY = replace(
    PRESETS["small"],
    dataset="digits",
    choices=(1, 3),
    widths=(4, 4, 4, 8),
    cells=1,
    scored_examples=8,
    teacher_depth=8,
    evaluations=6,
    population=4,
    tournament=2,
    repeats=3,
    cell_evaluations=6,
    cell_population=4,
    cell_tournament=2,
    timed_student=(1, 1, 1),
    timed_steps=1,
    teachers=(8,),
    students=("found",),
    methods=("diswot",),
    epochs=1,
)


def test_the_published_table_and_its_figures():
    accuracies = distilled_accuracies()
    assert list(accuracies) == ChoiceSpace((1, 3, 5, 7), 3).architectures()
    assert max(accuracies, key=accuracies.__getitem__) == (5, 5, 7)
    assert accuracies[5, 5, 7] == pytest.approx(0.7486)
    assert accuracies[3, 3, 3] == pytest.approx(0.7076)


def test_the_presets_are_the_protocol():
    small, paper = PRESETS["small"], PRESETS["paper"]
    assert small.choices == (1, 3, 5, 7)
    assert (small.evaluations, small.repeats, small.teacher_depth) == (24, 20, 56)
    assert (paper.cell_evaluations, paper.cell_population) == (1000, 36)
    assert (paper.cell_tournament, paper.cell_multiply_adds) == (8, 100e6)
    assert (paper.epochs, paper.batch_size, paper.learning_rate) == (240, 64, 0.05)
    assert paper.milestones == (150, 180, 210)
    assert paper.teachers == (56, 110)
    assert paper.timed_student == (3, 3, 3)
    assert set(paper.methods) <= set(objectives())
    assert PROTOCOL_STEPS == 240 * 781


def test_multiply_adds_are_the_benchmarks():
    assert multiply_adds((0,) * 6) == multiply_adds((4,) * 6) == 7.78e6
    # The benchmark's largest network takes 220.12 million.
    assert multiply_adds((3,) * 6) == pytest.approx(220.12e6, rel=1e-4)


def test_positions_are_those_of_the_enumeration():
    scorer = Scorer(TINY, Images(8, 1, 10), CELLS)
    cells = CELLS.architectures()
    for position in (0, 1, 7, 4321, 15_624):
        assert scorer.position(cells[position]) == position


def test_a_perfect_score_finds_the_best_student():
    config = PRESETS["small"]
    scores = distilled_accuracies()
    records = {(r.method, r.metric): r.value for r in search_depths(config, 0, scores)}
    best = max(scores.values())
    for method in ("evolution", "random"):
        found = records[method, "best_score"]
        assert records[method, "chosen_accuracy"] == pytest.approx(found)
        assert 0.7 < found <= best
        assert 0 < records[method, "best_found"] <= 1
    names = chosen(replace(config, students=("found", "median", "5-5-7")), scores)
    assert names["found"] == names["5-5-7"] == (5, 5, 7)
    ranked = sorted(scores.values())
    assert scores[names["median"]] == ranked[32]


@pytest.mark.slow
def test_full_scale_programs_have_shapes():
    programs = full_scale(PRESETS["paper"])
    assert set(programs) == {"resnet56-5-5-7", "resnet110-5-5-7"}
    program, batch = programs["resnet56-5-5-7"]
    assert batch["image"].shape == (64, 32, 32, 3)
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(program.step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {"loss", "kd", "cross_entropy", "diswot"} <= set(metrics)


@pytest.fixture
def quick_compiler():
    """Leave LLVM's optimisation out: everything is compiled and run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_a_shrunk_run_has_records_of_everything(tmp_path, quick_compiler):
    records = run(TINY, (0,), Run(tmp_path))
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
    assert all(claim.applies(records) for claim in CLAIMS)
    for claim in CLAIMS:
        assert claim.judge(records).numbers
