"""BD-KD: equal weights are its control, and a run of seconds has all it compares."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import call

from experiments.bdkd.experiment import EXPERIMENT, MECHANISM, TABLES, TAPS, objectives
from experiments.common.configs import NetworkConfig
from jaxkd.reporting.run import Run
from jaxkd.types import Outputs

SMALL = EXPERIMENT.presets["small"]


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
    table = TABLES["digits"]
    tiny = replace(
        table,
        student=NetworkConfig("mlp", {"features": 64, "widths": (4,)}),
        teacher=NetworkConfig("mlp", {"features": 64, "widths": (8,)}),
        train_examples=20,
        task=replace(table.task, epochs=1, batch_size=10),
    )
    monkeypatch.setitem(TABLES, "digits", tiny)
    config = replace(
        SMALL,
        tables=("digits",),
        methods=("cross_entropy", "bdkd"),
        mechanism_epochs=1,
        mechanism_batches=2,
    )
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
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
    with pytest.raises(ValueError, match=r"unknown method 'bd'.*did you mean"):
        EXPERIMENT.records(replace(config, methods=("bd",)), [0], Run(tmp_path))
