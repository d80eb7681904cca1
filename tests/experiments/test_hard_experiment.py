"""HARD's experiment: its data, its rows, and what its measures read."""

import dataclasses

import numpy as np
import pytest

from experiments.hard import experiment, settings
from jaxkd import data
from jaxkd.reporting.experiment import load_experiment
from jaxkd.reporting.run import Run


def test_digits_lie_in_the_middle_or_where_they_are_moved():
    source = data.digits().test
    placed = settings.on_canvas(source).arrays["image"]
    assert placed.shape == (797, 14, 14, 1)
    np.testing.assert_array_equal(placed[:, 3:11, 3:11], source.arrays["image"])
    assert placed.sum() == pytest.approx(source.arrays["image"].sum())
    moved = settings.on_canvas(source, (3, -2)).arrays["image"]
    np.testing.assert_array_equal(moved[:, 6:14, 1:9], source.arrays["image"])


def test_the_players_numbers_are_means_over_the_window():
    history = [
        {
            "step": step,
            "train_disagreement": d,
            "train_clean_kd": 0.5,
            "train_drift": 1.0,
            "train_spread": 0.2,
        }
        for step, d in ((10, 90.0), (20, 4.0), (400, 2.0), (405, 50.0))
    ]
    found = experiment.play(history)
    assert found == pytest.approx(
        {"disagreement_ratio": 6.0, "drift": 1.0, "spread": 0.2}
    )


@pytest.mark.slow
def test_a_short_run_has_every_row_and_measure(tmp_path, monkeypatch):
    short = dataclasses.replace(
        settings.SETTINGS["digits"],
        images=dataclasses.replace(settings.SETTINGS["digits"].images, epochs=1),
        teacher_epochs=1,
        corrupted=20,
        severities=(5,),
    )
    monkeypatch.setitem(settings.SETTINGS, "digits", short)
    config = experiment.Config(("digits",), ("kd", "hard_latent"))
    records = load_experiment("hard").records(config, [0], Run(tmp_path))
    found = {(r.method, r.metric) for r in records}
    rows = {"teacher", "kd", "hard_latent"}
    groups = {f"{group}_accuracy" for group in experiment.GROUPS}
    for row in rows:
        assert {(row, m) for m in groups | {"shifted_accuracy"}} <= found
    assert ("hard_latent", "spread") in found
    assert ("kd", "drift") not in found
