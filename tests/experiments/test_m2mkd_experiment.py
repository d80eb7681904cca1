"""m2mKD's experiment: a run of seconds has all phases and rows."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.m2mkd.experiment import EXPERIMENT, METHODS
from jaxkd.reporting.run import Run


@pytest.mark.slow
def test_a_short_run_has_all_rows(tmp_path):
    small = EXPERIMENT.presets["small"]
    config = replace(
        small,
        task=replace(small.task, epochs=1),
        meta_epochs=1,
        incubation_epochs=1,
        finetune_epochs=1,
        module_epochs=1,
        methods=("m2mkd",),
    )
    records = EXPERIMENT.records(config, [3], Run(tmp_path))
    rows = {(r.setting, r.method) for r in records}
    assert rows == {
        *(("teacher", name) for name in ("meta", "teacher", "hybrid 0", "hybrid 1")),
        *(("student", name) for name in config.methods),
    }
    assert {r.seed for r in records} == {3}
    assert all(np.isfinite(r.value) for r in records)
    loads = [r.value for r in records if r.metric == "least_load"]
    assert len(loads) == 1
    assert all(0 <= load <= 0.25 for load in loads)
    with pytest.raises(ValueError, match=r"unknown method 'm2m'.*did you mean"):
        EXPERIMENT.records(replace(config, methods=("m2m",)), [0], Run(tmp_path))
    assert set(small.methods) == set(METHODS)
