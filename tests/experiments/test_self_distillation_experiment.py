"""Self-distillation in theory: divisions, the paper's table, and a tiny run."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.self_distillation_theory.experiment import (
    EXPERIMENT,
    PAPER,
    PRESETS,
    arms,
)
from experiments.self_distillation_theory.kernel_runs import KernelConfig, digits, sine
from experiments.self_distillation_theory.splits import SplitConfig, divide
from jaxkd import data
from jaxkd.reporting.run import Run, run_arms


def test_only_training_labels_are_wrong_and_no_example_is_in_two_parts():
    found = data.load("digits")
    split = divide(SplitConfig(), found.train, found.test, seed=1)
    sizes = [len(part) for part in (split.train, split.validation, split.test)]
    assert sizes == [300, 300, 1197]
    true = {
        image.tobytes(): label
        for part in (found.train, found.test)
        for image, label in zip(part.arrays["image"], part.arrays["label"], strict=True)
    }
    seen, wrong = [], []
    for part in (split.train, split.validation, split.test):
        images = [image.tobytes() for image in part.arrays["image"]]
        seen += images
        wrong.append(np.mean([true[i] for i in images] != part.arrays["label"]))
    assert len(set(seen)) == len(true)
    # A tenth of the 30 % that are drawn anew is right by chance.
    assert 0.2 < wrong[0] < 0.3
    assert wrong[1:] == [0, 0]
    other = divide(SplitConfig(), found.train, found.test, seed=2)
    assert other.train.fingerprint != split.train.fingerprint


def test_the_sine_is_the_authors_to_five_digits():
    found = {(r.setting, r.method): r.value for r in sine() if r.metric == "mse"}
    assert len(found) == len(PAPER) == 21
    for name, values in PAPER.items():
        assert abs(found[tuple(name.split("/"))] - values["mse"].value) < 5e-6


def test_the_greedy_weight_beats_the_grid_on_digits():
    found = data.load("digits")
    split = divide(SplitConfig(60, 60), found.train, found.test, seed=0)
    records = digits(KernelConfig(steps=4), 0.01, split, seed=0)
    values = {(r.method, r.metric): r.value for r in records}
    assert values["alpha_star", "grid_excess"] <= 1e-9
    limit, long = (values[f"alpha_fixed_{x}", "mse"] for x in ("limit", "long"))
    np.testing.assert_allclose(long, limit, rtol=1e-6)


@pytest.mark.slow
def test_a_tiny_run_of_networks(tmp_path):
    config = replace(
        PRESETS["small"],
        split=SplitConfig(50, 50),
        task=replace(PRESETS["small"].task, epochs=2),
        steps=2,
        grid=(0.0, 1.0),
    )
    records = run_arms(arms, config, (0,), Run(tmp_path), anew=True)
    rows = ["first_step", "alpha_0", "alpha_1", "best_of_grid", "alpha_hat"]
    assert list(dict.fromkeys(r.method for r in records)) == rows
    (alpha,) = (r.value for r in records if r.metric == "alpha")
    assert 0 <= alpha <= 1
    assert "teacher" in EXPERIMENT.varies
