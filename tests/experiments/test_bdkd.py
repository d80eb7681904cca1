"""BD-KD's presets, the comparison of single updates, and a run of seconds."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import call

from experiments.bdkd.config import DIGITS, FASHION, PAPER_PAIRS, PRESETS, TABLES
from experiments.bdkd.experiment import (
    CLAIMS,
    MECHANISM,
    TAPS,
    full_scale,
    objectives,
    run,
)
from jaxkd.reporting.experiment import Run
from jaxkd.types import Outputs

SMALL, FULL = PRESETS["small"], PRESETS["paper"]


def test_the_presets_are_the_protocols():
    assert [TABLES[name] for name in SMALL.tables] == [FASHION, DIGITS]
    assert (SMALL.temperature, SMALL.delta, SMALL.weight) == (2.0, 2.0, 1.0)
    assert (FASHION.train_examples, FASHION.epochs, FASHION.batch_size) == (
        5000,
        15,
        64,
    )
    assert (DIGITS.train_examples, DIGITS.epochs, DIGITS.most_seeds) == (300, 120, 5)
    assert FULL.tables == PAPER_PAIRS
    for table in map(TABLES.get, FULL.tables):
        assert (table.epochs, table.batch_size, table.learning_rate) == (240, 64, 0.05)
        assert table.milestones == (150, 180, 210)


@pytest.mark.slow
def test_full_scale_trains_both_networks():
    programs = full_scale(FULL)
    assert sorted(programs) == sorted(PAPER_PAIRS)
    program, batch = programs["wrn40_2-wrn16_2"]
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(program.step, state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert "bdkd" in metrics
    assert set(state.student["params"]) == {"0", "1"}


def test_equal_weights_are_bdkd_with_delta_1():
    rng = np.random.default_rng(0)
    features = {tap: jnp.asarray(rng.normal(size=(6, 10)), "f4") for tap in TAPS}
    outputs, batch = Outputs(None, features), {"label": jnp.arange(6)}
    values = [
        call(method, {"params": {}, "state": {}}, outputs, None, batch)[0]
        for method in (
            objectives(SMALL)["one_to_one"],
            objectives(replace(SMALL, delta=1.0))["bdkd"],
        )
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)


@pytest.mark.slow
def test_a_short_run_has_all_methods(tmp_path, monkeypatch):
    table = replace(
        DIGITS,
        student=("mlp", {"features": 64, "widths": (4,)}),
        teacher=("mlp", {"features": 64, "widths": (8,)}),
        train_examples=20,
        epochs=1,
        batch_size=10,
    )
    monkeypatch.setitem(TABLES, "digits", table)
    config = replace(
        SMALL,
        tables=("digits",),
        methods=("cross_entropy", "bdkd"),
        mechanism_epochs=1,
        mechanism_batches=2,
    )
    records = run(config, [0], Run(tmp_path))
    for method in config.methods:
        found = {
            r.metric: r.value
            for r in records
            if (r.setting, r.method) == ("digits", method)
        }
        assert {"last_accuracy", "ece", "adaptive_ece", "overconfidence"} <= set(found)
        assert ("teacher_accuracy" in found) == (method != "cross_entropy")
        assert all(map(np.isfinite, found.values()))
    single = [r for r in records if r.setting == MECHANISM]
    assert {r.method for r in single} == {"one_to_one", "bdkd", "inverted"}
    assert {r.seed for r in single} == {0, 1}
    assert all(claim.judge(records).numbers for claim in CLAIMS)
    with pytest.raises(ValueError, match=r"unknown method 'bd'.*did you mean"):
        run(replace(config, methods=("bd",)), [0], Run(tmp_path))
