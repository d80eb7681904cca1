"""TGeo-KD's presets, its tables' data, and a run of seconds."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from experiments.tgeokd.config import PRESETS
from experiments.tgeokd.experiment import (
    CLAIMS,
    PAPER,
    corrupted,
    full_scale,
    load_examples,
    run,
)
from jaxkd import data
from jaxkd.reporting.claims import Status
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record

SMALL, FULL = PRESETS["small"], PRESETS["paper"]


def test_the_presets_are_the_protocols():
    assert (SMALL.train_examples, SMALL.validation_examples) == (400, 150)
    assert (SMALL.temperature, SMALL.epochs, SMALL.corrupted) == (2.0, 60, 0.3)
    assert (SMALL.learning_rate, SMALL.look_ahead) == (5e-3, 0.1)
    # A tenth of CIFAR-100 is held out; the rest is the benchmarks' recipe.
    assert (FULL.dataset, FULL.validation_examples) == ("tfds/cifar100", 5000)
    assert (FULL.epochs, FULL.batch_size, FULL.temperature) == (240, 64, 4.0)
    assert (FULL.learning_rate, FULL.teacher_learning_rate) == (0.01, 0.05)
    assert FULL.milestones == (150, 180, 210)
    for name in PAPER:
        setting, method = name.split("/")
        assert setting in FULL.settings
        assert method in FULL.methods


def test_splits_share_no_example_and_bad_labels_are_a_share():
    dataset, train, validation = load_examples(SMALL)
    assert (len(train), len(validation), len(dataset.test)) == (400, 150, 797)
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
@pytest.mark.parametrize("name", ["fixed_0.9", "tgeokd"])
def test_full_scale_steps(name):
    program, batch = full_scale(FULL)[name]
    assert jax.tree.leaves(batch)[0].shape[0] % 8 == 0
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(program.step, state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert metrics["loss"].shape == ()
    if name == "tgeokd":
        # The controller reads nine vectors of 100 classes.
        first = state.method["params"]["layers"]["0"]["kernel"]
        assert first.shape == (900, 32)


@pytest.mark.slow
def test_a_short_run_has_all_methods(tmp_path):
    config = replace(
        SMALL,
        settings=("bad labels",),
        methods=("fixed_0.5", "wls", "frozen", "tgeokd", "cross_entropy_all"),
        train_examples=20,
        validation_examples=10,
        epochs=1,
        teacher_epochs=1,
        batch_size=10,
        evaluate_every=1,
    )
    records = run(config, [0], Run(tmp_path))
    assert {r.method for r in records} == {"teacher", *config.methods}
    assert {r.setting for r in records} == {"bad labels"}
    shares = {r.method: r.value for r in records if r.metric == "alpha"}
    learnt = {"wls", "frozen", "tgeokd"}
    assert set(shares) == learnt
    assert all(0 <= value <= 1 for value in shares.values())
    assert all(claim.judge(records).numbers for claim in CLAIMS)
    with pytest.raises(ValueError, match=r"unknown method 'tgeo'.*did you mean"):
        run(replace(config, methods=("tgeo",)), [0], Run(tmp_path))


def test_the_claim_on_the_share_compares_the_tables():
    claim = next(c for c in CLAIMS if "α" in c.name)

    def judged(labels, teacher):
        records = [
            Record("tgeokd", seed, "alpha", value, 1.0, setting)
            for setting, value in (("bad labels", labels), ("bad teacher", teacher))
            for seed in range(2)
        ]
        return claim.judge(records).status

    assert judged(0.6, 0.3) == Status.HOLDS
    assert judged(0.5, 0.4) == Status.FAILS
    assert claim.judge([]).status == Status.NOT_ESTABLISHED


def test_absent_data_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises((FileNotFoundError, ImportError), match=r"tfds|tensorflow"):
        data.load(FULL.dataset)
