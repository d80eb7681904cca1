"""RAD's rounds, which only long runs would show broken."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.rad.config import NETWORKS, PRESETS, SETTINGS
from experiments.rad.experiment import EXPERIMENT, RULES, prepare, supervised
from jaxkd.reporting.run import Run

SHORT = replace(PRESETS["small"], steps=5, rounds=2, queries=10, games=2)


@pytest.mark.slow
def test_all_rules_start_alike_and_are_asked_as_often(tmp_path: Path):
    config = replace(SHORT, settings=("teacher of 40 labels",))
    found = EXPERIMENT.records(config, [0], Run(tmp_path))
    curves = {r.method: r.curve for r in found if r.curve}
    assert set(curves) == set(RULES)
    assert {len(curve) for curve in curves.values()} == {3}
    assert len({curve[0] for curve in curves.values()}) == 1
    (gap,) = (r.value for r in found if r.metric == "lp_gap")
    assert gap < 1e-8
    (support,) = (r.value for r in found if r.metric == "support")
    assert 0 < support <= 1


def test_the_teacher_has_seen_nothing_that_it_may_be_asked(tmp_path: Path):
    network = NETWORKS["mlp32"].build(10)
    setting = "teacher of 150 labels"
    given = prepare(
        SHORT, Run(tmp_path), supervised(SHORT, network), network, setting, 0
    )
    per_class = SETTINGS[setting]
    assert len(given.labelled) == 10 * per_class[1]
    assert len(given.unlabelled) == 1797 - 500 - 100 - 10 * per_class[0]
    assert not {*given.labelled} & {*given.unlabelled}
    assert len(given.right) == 100


def test_unknown_names_are_refused(tmp_path: Path):
    config = replace(SHORT, rules=("rads",))
    with pytest.raises(ValueError, match="unknown rule 'rads': did you mean 'rad'"):
        EXPERIMENT.records(config, [0], Run(tmp_path))
