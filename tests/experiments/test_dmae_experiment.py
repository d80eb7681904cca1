"""DMAE's experiment: a run of seconds has all rows, and the teacher's parts cost."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.common.configs import OptimizerConfig
from experiments.dmae.config import DIGITS, Phase
from experiments.dmae.experiment import EXPERIMENT, ROWS
from experiments.dmae.measures import PASS
from experiments.dmae.networks import Sizes
from jaxkd.reporting.run import Run


@pytest.mark.slow
def test_a_short_run_has_its_rows(tmp_path):
    small = Sizes((8, 2, 2), (8, 0, 2), image=8, patch=2, channels=1, classes=10)
    phase = Phase(
        replace(DIGITS.finetuning.task, epochs=1, batch_size=500),
        OptimizerConfig("adamw", 1e-3),
    )
    config = replace(
        DIGITS,
        methods=("dmae_finetuned",),
        teacher=small,
        student=small,
        layers=(1, 0),
        pretraining=phase,
        teacher_epochs=1,
        finetuning=replace(phase, task=replace(phase.task, batch_size=10)),
        labelled=20,
        layer_decay=0.75,
        mix=True,
    )
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
    found = {(r.method, r.metric): r.value for r in records if r.setting == "digits"}
    assert {name for name, _ in found} == {"teacher", "scratch", *config.methods}
    for row in config.methods:
        assert found[row, "reconstruction"] > 0
        assert np.isfinite(found[row, "last_accuracy"])
    cost = {(r.method, r.metric): r.value for r in records if r.setting == PASS}
    assert cost["first blocks", "difference"] == 0
    assert cost["first blocks", "share"] < 0.6 * cost["visible patches", "share"]
    assert cost["visible patches", "share"] < 0.5
    with pytest.raises(ValueError, match=r"unknown method 'dmea'.*did you mean 'dmae'"):
        EXPERIMENT.records(replace(config, methods=("dmea",)), [0], Run(tmp_path / "b"))
    assert set(DIGITS.methods) <= set(ROWS)
