"""TRG's experiment: its probe tells tokens apart, and a run of seconds has all rows."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.trg.experiment import EXPERIMENT, METHODS, SETTINGS, SMALL
from experiments.trg.measures import contextual_mismatch, probe_loss
from jaxkd.reporting.run import Run


@pytest.mark.slow
def test_the_probe_finds_what_two_networks_share():
    keys = jax.random.split(jax.random.key(0), 3)
    teacher = jax.random.normal(keys[0], (96, 2, 2, 6))
    mixed = teacher @ jax.random.normal(keys[1], (6, 5))
    other = jax.random.normal(keys[2], (96, 2, 2, 5))

    def probe(student):
        pairs = (student[:64], teacher[:64]), (student[64:], teacher[64:])
        return probe_loss(*pairs, 100)

    chance = np.log(128)
    assert probe(mixed) < chance - 1
    assert probe(other) > chance - 0.5
    assert contextual_mismatch((teacher, teacher), normalize=False) == 0


@pytest.mark.slow
def test_a_short_run_has_all_rows(tmp_path, monkeypatch):
    for name, setting in SMALL.items():
        task = replace(setting.task, epochs=1)
        tiny = replace(setting, task=task, teacher_epochs=1)
        monkeypatch.setitem(SETTINGS, name, tiny)
    config = replace(
        EXPERIMENT.presets["small"],
        methods=("cross_entropy", "trg"),
        probe_images=64,
        probe_steps=2,
    )
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
    metrics = {"last_accuracy", "head_accuracy", "middle_accuracy", "tail_accuracy"}
    for setting in SMALL:
        for row in ("teacher", *config.methods):
            found = {
                r.metric: r.value
                for r in records
                if (r.setting, r.method) == (setting, row)
            }
            extra = (
                set() if row == "teacher" else {"contextual_mismatch", "global_loss"}
            )
            assert metrics | extra <= set(found)
            assert all(map(np.isfinite, found.values()))
    bad = replace(config, methods=("trgg",))
    with pytest.raises(ValueError, match=r"unknown method 'trgg'.*did you mean"):
        EXPERIMENT.records(bad, [0], Run(tmp_path / "other"))
    assert set(METHODS) == set(SMALL["balanced teacher"].methods(1))
