"""TGeo-KD: its tables' data, what its controller reads, and a run of seconds."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.tgeokd.experiment import EXPERIMENT, corrupted, full_scale, load
from jaxkd.reporting.run import Run

SMALL = EXPERIMENT.presets["small"]


def test_splits_share_no_example_and_bad_labels_are_a_share():
    found = load(SMALL)
    train, validation = found.train, found.validation
    assert (len(train), len(validation), len(found.test)) == (400, 150, 797)
    images = {image.tobytes() for image in validation.arrays["image"]}
    # A few digits are drawn twice in the data set itself.
    assert sum(image.tobytes() in images for image in train.arrays["image"]) == 0
    poor = corrupted(train, 0.3)
    np.testing.assert_array_equal(poor.arrays["true_label"], train.arrays["label"])
    # A tenth of the new labels are the old ones.
    wrong = np.mean(poor.arrays["label"] != train.arrays["label"])
    assert 0.22 < wrong <= 0.3
    assert corrupted(train, 0.3).fingerprint == poor.fingerprint


@pytest.mark.slow
def test_the_controller_reads_nine_vectors_of_100_classes():
    program, batch = full_scale(EXPERIMENT.presets["paper"])["tgeokd"]
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    assert state.method["params"]["layers"]["0"]["kernel"].shape == (900, 32)


@pytest.mark.slow
def test_a_short_run_has_all_methods(tmp_path):
    config = replace(
        SMALL,
        settings=("bad labels",),
        methods=("wls", "tgeokd", "cross_entropy_all"),
        train_examples=20,
        validation_examples=10,
        teacher_epochs=1,
        task=replace(SMALL.task, epochs=1, batch_size=10, evaluate_every=1),
    )
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
    assert {r.method for r in records} == {"teacher", *config.methods}
    assert {r.setting for r in records} == {"bad labels"}
    shares = {r.method: r.value for r in records if r.metric == "alpha"}
    assert set(shares) == {"wls", "tgeokd"}
    assert all(0 <= value <= 1 for value in shares.values())
    with pytest.raises(ValueError, match=r"unknown method 'tgeo'.*did you mean"):
        EXPERIMENT.records(replace(config, methods=("tgeo",)), [0], Run(tmp_path))
