"""ProC-KD's experiment: label spaces that differ, and what the teacher is shown."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.prockd.experiment import EXPERIMENT, TABLES, _enlarged, _range
from jaxkd import data
from jaxkd.reporting.run import Run

NAME = "digits 5 to 9 from 0 to 4"


def test_classes_are_numbered_anew():
    digits = data.digits()
    train = _range(digits.train, 5, 10)
    original = digits.train.arrays["label"]
    assert train.classes == 5
    np.testing.assert_array_equal(train.arrays["label"], original[original >= 5] - 5)
    assert len(train) + len(_range(digits.train, 0, 5)) == len(digits.train)


def test_the_teacher_is_shown_digits_as_colour_images_of_its_size():
    digits = data.digits().train
    source = data.Source("few", {k: v[:3] for k, v in digits.arrays.items()}, 10)
    shown = _enlarged(source).arrays["teacher_image"]
    assert shown.shape == (3, 32, 32, 3)
    assert shown.dtype == np.float32
    # Black is the mean's negative, in ImageNet's deviations.
    np.testing.assert_allclose(
        shown.min((0, 1, 2)), [-2.118, -2.036, -1.804], atol=2e-3
    )


@pytest.mark.slow
def test_rows_train_and_measure_both_heads(tmp_path, monkeypatch):
    table = TABLES[NAME]
    short = replace(table, task=replace(table.task, epochs=2, evaluate_every=1))
    monkeypatch.setattr("experiments.prockd.experiment.TABLES", {NAME: short})
    config = replace(
        EXPERIMENT.preset("small"), tables=(NAME,), rows=("scratch", "own_head")
    )
    records = EXPERIMENT.records(config, [0, 1], Run(tmp_path))
    found = {(r.method, r.metric): r for r in records if r.seed == 1}
    assert 0 < found["own_head", "prototype_entropy"].value <= 1 + 1e-6
    assert len(found["own_head", "head_kl"].curve) == 2
    assert 0 <= found["own_head", "augmented_accuracy"].value <= 1
    assert ("scratch", "augmented_accuracy") not in found
    with pytest.raises(ValueError, match="unknown row 'prock'"):
        EXPERIMENT.records(replace(config, rows=("prock",)), [0], Run(tmp_path / "b"))
