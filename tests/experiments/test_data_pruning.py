"""Data pruning's protocol, which only long runs would show broken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.data_pruning.config import PRESETS, ScoringConfig
from experiments.data_pruning.experiment import EXPERIMENT, load, ridge
from experiments.data_pruning.scoring import batches
from jaxkd import data
from jaxkd.reporting.run import Run

SMALL = PRESETS["small"]


def test_every_fraction_takes_as_many_steps():
    images = load(SMALL, 0)
    assert (len(images.train), len(images.test)) == (1297, 500)
    for count, size in ((25, 25), (389, 64)):
        source = data.Subset(images.train, np.arange(count))
        found = batches(replace(SMALL, steps=7), images, source, 0)
        sizes = [len(batch["label"]) for batch in found]
        assert len(sizes) >= 7
        assert set(sizes) == {size}
    other = load(SMALL, 1).test.arrays["image"]
    assert (other != images.test.arrays["image"]).any()


def test_a_teacher_of_more_data_is_the_better_one():
    found = ridge(SMALL, 0, Path())
    error = {(r.setting, r.method): r.value for r in found}
    parts = [error["ridge, α = 1", f"f_t = {part:g}"] for part in (0.2, 0.4, 0.7, 1)]
    assert parts == sorted(parts, reverse=True)
    plain = {error[f"ridge, α = {alpha}", "no teacher"] for alpha in ("0.5", "1")}
    assert len(plain) == 1


@pytest.mark.slow
def test_rules_are_trained_with_and_without_a_teacher(tmp_path: Path):
    rules = ("random", "grand", "ccs", "memorization")
    config = replace(
        SMALL,
        rules=rules,
        steps=6,
        fractions=(0.02,),
        alphas=(0.5,),
        rule_fractions=(0.03,),
        teachers=("mlp8",),
        teacher_fractions=(0.03,),
        scoring=ScoringConfig(runs=1, steps=2, evaluations=2, subsets=3),
        ridge_repeats=0,
    )
    found = EXPERIMENT.records(config, [0], Run(tmp_path))
    rows = {(r.setting, r.method) for r in found}
    assert {row for s, row in rows if s == "rules, f = 0.03"} == {
        f"{rule}{end}" for rule in rules for end in ("", " + KD")
    }
    assert ("random, f = 0.02", "alpha 0.5") in rows
    assert ("teachers, f = 0.03", "mlp8") in rows
    # What was scored and trained is not done again.
    assert EXPERIMENT.records(config, [0], Run(tmp_path)) == found


def test_unknown_names_are_refused(tmp_path: Path):
    for change, message in (
        ({"rules": ("el2m",)}, "unknown rule 'el2m': did you mean 'el2n'"),
        ({"network": "mlp65"}, "unknown network 'mlp65'"),
    ):
        config = replace(SMALL, ridge_repeats=0, **change)
        with pytest.raises(ValueError, match=message):
            EXPERIMENT.records(config, [0], Run(tmp_path))
