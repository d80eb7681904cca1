"""Talking models' experiment: a run of seconds has all rows, and what they say."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.common.configs import NetworkConfig
from experiments.talking_models.config import Config, Talk
from experiments.talking_models.experiment import DISTILLED, EXPERIMENT, downstream
from jaxkd.reporting.run import Run


def test_the_students_task_is_another_and_each_seed_has_images_of_its_own():
    config = Config(labelled=30)
    images = config.task.load(config.optimizer)
    first, other = (downstream(config, images, seed) for seed in (0, 1))
    assert np.bincount(first.train.arrays["label"]).tolist() == [10, 10, 10]
    label = images.test.arrays["label"] % 3
    np.testing.assert_array_equal(first.test.arrays["label"], label)
    assert not np.array_equal(first.train.arrays["image"], other.train.arrays["image"])


@pytest.mark.slow
def test_a_short_run_has_its_rows(tmp_path):
    config = Config(
        methods=("td1", "td2"),
        teacher=NetworkConfig("mlp", {"widths": (8, 6)}),
        student=NetworkConfig("mlp", {"widths": (4, 5)}),
        talk=Talk(("hidden0", "hidden1"), ("hidden0", "hidden1"), 3, 4),
        labelled=50,
        teacher_epochs=1,
    )
    config = replace(config, task=replace(config.task, epochs=1))
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
    found = {(r.method, r.metric): r.value for r in records}
    for row in set(config.methods) & set(DISTILLED):
        for cka in ("message_cka", "message_cka_start"):
            assert 0 <= found[row, cka] <= 1 + 1e-6
        assert found[row, "interaction"] != found[row, "interaction_start"]
        assert found[row, "message_spread"] > 0
    assert found["td1", "last_accuracy"] > 0
    assert {r.setting for r in records} == {"digits", "teacher's task"}
    with pytest.raises(ValueError, match=r"unknown method 'td3'.*did you mean 'td"):
        EXPERIMENT.records(replace(config, methods=("td3",)), [0], Run(tmp_path / "b"))
