"""KD-AIF: rows differ in their weights alone, and a short run has all it compares."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.common.configs import NetworkConfig
from experiments.kdaif.experiment import EXPERIMENT
from experiments.kdaif.settings import LEAVE_ONE_OUT, NOISY, PSEUDO
from experiments.kdaif.weights import detection_auc, weights_of
from jaxkd.reporting.run import Run

SMALL = EXPERIMENT.presets["small"]


def test_rows_weigh_as_their_names_say():
    scores, wrong = np.array([-1.0, -0.5, 0.2, 3.0]), np.array([0, 0, 0, 1], bool)
    for name in ("exp", "sigmoid", "linear", "topk", "oracle"):
        weights = weights_of(name, scores, wrong)
        assert weights[3] == weights.min() < weights[0]
        assert weights.mean() == pytest.approx(1)
    released = weights_of("released", scores, wrong)
    assert released[3] == released.max()
    assert weights_of("oracle", scores, wrong)[3] == 0


def test_detection_counts_pairs():
    wrong = np.array([1, 1, 0, 0, 0], bool)
    assert detection_auc(np.array([3.0, 1, 0, 1, 2]), wrong) == pytest.approx(4.5 / 6)


@pytest.mark.slow
def test_a_short_run_has_all_rows(tmp_path):
    config = replace(
        SMALL,
        rows=("uniform", "sigmoid", "rounds_ts"),
        teacher=NetworkConfig("mlp", {"features": 64, "widths": (8,)}),
        student=NetworkConfig("mlp", {"features": 64, "widths": (4,)}),
        task=replace(SMALL.task, epochs=2, batch_size=20),
        train_examples=60,
        validation_examples=20,
        labelled=20,
        rounds=2,
        teacher_epochs=1,
        retrain_epochs=1,
        left_out=2,
    )
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
    for setting in (NOISY, PSEUDO):
        for row in config.rows:
            found = {
                r.metric: r.value
                for r in records
                if (r.setting, r.method) == (setting, row)
            }
            assert {"last_accuracy", "detection_auc", "wrong_weight"} <= set(found)
            assert all(map(np.isfinite, found.values()))
    assert {r.metric for r in records if r.setting == LEAVE_ONE_OUT} == {
        "loo_correlation",
        "loo_slope",
    }
    with pytest.raises(ValueError, match=r"unknown row 'sigmod'.*did you mean"):
        EXPERIMENT.records(replace(config, rows=("sigmod",)), [0], Run(tmp_path))
