"""MIX-KD: who sees mixed images, and a run of seconds has all it compares."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.common.configs import NetworkConfig
from experiments.common.networks import PairSpec
from experiments.mixkd.experiment import EXPERIMENT, GRID
from experiments.mixkd.settings import MIXED_TEACHER, ROWS, TABLES, Row
from jaxkd.reporting.run import Run

SMALL = EXPERIMENT.presets["small"]


@pytest.fixture
def tiny(monkeypatch):
    table = TABLES["digits"]
    teacher, student = (
        NetworkConfig("mlp", {"features": 64, "widths": (w,)}) for w in (8, 4)
    )
    found = replace(
        table,
        pair=PairSpec(teacher, student),
        task=replace(table.task, epochs=1, batch_size=10),
        train_examples=20,
        teacher_examples=20,
        teacher_epochs=1,
    )
    monkeypatch.setitem(TABLES, "digits", found)
    return found


def test_a_row_mixes_its_share_of_every_batch(tiny):
    images = tiny.task.load(tiny.optimizer)
    assert Row().mixing(images) is images
    for row, count in ((ROWS["mixstd_10"], 1), (ROWS["kd_full"], 10)):
        batch = next(iter(row.mixing(images).batches(seed=0, epochs=1)))
        label = batch["label"]
        assert label.shape == (10, 10)
        # A pair of one class is mixed too, but not seen.
        assert ((label > 0).sum(1) > 1).sum() <= count
        np.testing.assert_allclose(label.sum(1), 1, rtol=1e-6)


@pytest.mark.slow
def test_a_short_run_has_teachers_students_and_the_grid(tiny, tmp_path):
    config = replace(
        SMALL,
        tables=("digits",),
        rows=("cross_entropy_full", "mixstd_41", "kd_from_mixup"),
        temperatures=(1.0,),
        shares=(0.0, 0.5),
    )
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
    for method in (*config.rows, "teacher", MIXED_TEACHER):
        found = {
            r.metric: r.value
            for r in records
            if (r.setting, r.method) == ("digits", method)
        }
        assert {"last_accuracy", "entropy", "mixed_entropy", "fgsm_accuracy"} <= {
            *found
        }
        assert all(map(np.isfinite, found.values()))
    assert {r.method for r in records if r.setting == GRID} == {"T 1, 0%", "T 1, 50%"}
    with pytest.raises(ValueError, match=r"unknown row 'mixst'.*did you mean"):
        EXPERIMENT.records(replace(config, rows=("mixst",)), [0], Run(tmp_path))
