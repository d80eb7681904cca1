"""CAST's presets, the methods' programs, and a run of seconds."""

import lzma
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from experiments.cast.claims import falls_along, law_predicts
from experiments.cast.config import METHODS, PRESETS, SCOPE
from experiments.cast.experiment import EXPERIMENT, arms, full_scale, rows
from experiments.common.corpus import CorpusConfig
from jaxkd.compression.prune.sparsity import named, weights_in_scope
from jaxkd.reporting.claims import Status
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Run

SMALL, FULL = PRESETS["small"], PRESETS["paper"]
TINY = {"width": 16, "layers": 2, "heads": 2, "hidden": 32}


@pytest.fixture
def text(monkeypatch, tmp_path):
    """A text of 2,000 characters of ten kinds, where the real one would be."""
    (tmp_path / "text").mkdir()
    letters = np.random.default_rng(0).integers(0, 10, 2000)
    content = "".join("abcdefghi\n"[i] for i in letters)
    file = tmp_path / "text" / "tiny_shakespeare.txt.xz"
    file.write_bytes(lzma.compress(content.encode()))
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))


def tiny(**changes):
    changes = {"budgets": (), **changes}
    return replace(
        SMALL,
        model=TINY,
        corpus=CorpusConfig(length=8, test_windows=6, batch_size=4),
        teacher_steps=2,
        steps=3,
        **changes,
    )


def test_the_pull_can_reach_as_far_as_most_dropped_weights():
    np.testing.assert_allclose(SMALL.budget, 0.11, rtol=0.01)


def test_full_scale_is_llama_2_7b_with_half_of_its_projections_dropped():
    program, batch = full_scale(FULL)["cast"]
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(program.step, state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert metrics["loss"].shape == ()
    found = named(state.student["params"]["network"])
    assert sum(weight.size for weight in found.values()) == 6_738_415_616
    masks = named(state.opt_state)
    dropped = sum(x.size for x in masks.values() if x.dtype == bool) // 2
    assert dropped == 3_238_002_688
    # The dense model is kept in the dtype it computes in, the student in float32.
    assert {x.dtype.name for x in jax.tree.leaves(state.teacher)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(state.student)} == {"float32"}


@pytest.mark.slow
def test_every_method_trains_the_same_scope(text):
    config = tiny(methods=(*METHODS, "cast_no_ramp"))
    corpus = config.corpus.load()
    network = config.network(corpus.vocabulary)
    params = jax.jit(network.init)(jax.random.key(0))["params"]
    assert len(weights_in_scope(params, SCOPE)) == 7
    made = rows(config, network, network, network, network)
    assert set(config.rows) <= set(made)
    batch = corpus.train.take(np.arange(4))
    assert made["one_shot"]()[1] is None
    # The others differ from these in numbers alone.
    for name in ("fixed_mask", "sr_ste", "ast", "cast"):
        _, program, steps = made[name]()
        state = jax.eval_shape(program.init, jax.random.key(0), batch)
        _, metrics = jax.eval_shape(program.step, state, batch)
        assert {"cross_entropy", "kd"} <= set(metrics)
        assert steps == config.steps


def test_an_unknown_method_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"unknown method 'cost'.*did you mean 'cast'"):
        next(arms(tiny(methods=("cost",)), Run(tmp_path), 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_short_run_prunes_what_it_says(text, tmp_path):
    config = tiny(methods=("one_shot", "cast"), decays=(), budgets=(5,))
    records = EXPERIMENT.records(config, [0], Run(tmp_path / "run"))
    found = {(r.method, r.metric): r.value for r in records}
    rows = ("one_shot", "cast", "cast_5_steps")
    assert {method for method, _ in found} == {"teacher", *rows}
    assert abs(found["cast", "int8_cost"]) < abs(found["cast", "int4_cost"]) < 0.1
    for method in rows:
        assert found[method, "exact_groups"] == 1
        gap = found[method, "nll"] - found[method, "dense_nll"]
        assert found[method, "pruning_gap"] == pytest.approx(gap, abs=1e-9)
    assert found["one_shot", "dense_nll"] == pytest.approx(found["teacher", "nll"])
    assert found["cast", "fold_error"] < 1e-6
    assert found["cast", "smallest_scale"] > 0.9
    curve = next(r.curve for r in records if (r.method, r.metric) == ("cast", "nll"))
    assert len(curve) == 3
    assert all(claim.judge(records).numbers for claim in EXPERIMENT.claims)


def seeds(method, metric, value, error=1e-3):
    """Return three seeds' records, spread by an error."""
    return [
        Record(method, i, metric, value + error * (i - 1), 1.0, "tiny_shakespeare")
        for i in range(3)
    ]


def test_a_fall_is_from_each_to_the_next():
    claim = falls_along(("a", "b", "c"), "pruning_gap")
    ends = [*seeds("a", "pruning_gap", 3.0), *seeds("c", "pruning_gap", 1.0, 1e-2)]
    judged = [
        claim.judge([*ends, *seeds("b", "pruning_gap", b, 2e-2)]).status
        for b in (2.0, 0.5)
    ]
    assert judged == [Status.HOLDS, Status.FAILS]
    assert claim.judge(ends).status == Status.NOT_ESTABLISHED


def test_the_scaling_law_is_judged_on_what_was_left_out():
    budgets = {f"d{tokens}": tokens for tokens in (100, 200, 400, 800, 1600)}
    claim = law_predicts(budgets, "d1600", within=0.01)

    def losses(last):
        found = [
            r
            for method, tokens in budgets.items()
            for r in seeds(method, "nll", 1 + tokens**-0.5, 1e-4)
            if method != "d1600"
        ]
        return [r for r in [*seeds("d1600", "nll", last, 1e-4), *found] if r.seed < 2]

    assert claim.judge(losses(1.025)).status == Status.HOLDS
    assert claim.judge(losses(1.1)).status == Status.FAILS
    verdict = claim.judge(losses(1.1)[1:])
    assert verdict.status == Status.NOT_ESTABLISHED
    assert "have not the same seeds" in verdict.numbers
