"""PCoreSet's protocol, data and rounds, which only long runs would show broken."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.pcoreset.experiment import EXPERIMENT, PRESETS, RULES
from experiments.pcoreset.images import (
    load_images,
    read_embeddings,
    teacher_accuracy,
    teacher_logits,
    teacher_prototypes,
)
from experiments.pcoreset.rounds import (
    selections,
    student_network,
    worst_cover_ratio,
)
from jaxkd.reporting.run import Run, read_part

SHORT = replace(PRESETS["small"], rounds=1, length=3, clap_passes=2)


def test_a_rounds_steps_are_passes_over_what_it_knows():
    assert SHORT.steps(10, 1000) == 3
    assert PRESETS["paper"].steps(128, 4000) == 200 * 128 // 64
    assert PRESETS["imagenet"].steps(1000, 1_280_000) == 20 * 5000


def test_digits_and_their_two_teachers():
    images = load_images(SHORT)
    assert (len(images.train), len(images.test)) == (1297, 500)
    np.testing.assert_allclose(np.linalg.norm(images.features, axis=1), 1, rtol=1e-5)
    logits = teacher_logits(SHORT, images.test_features, images.prototypes)
    assert np.abs(logits).max() <= 12.001
    before = teacher_accuracy(SHORT, images, images.prototypes)
    assert before == pytest.approx(0.74, abs=0.01)
    labelled, config = np.arange(300), replace(SHORT, clap_passes=20)
    key = jax.random.key(0)
    same = teacher_prototypes(config, images, "zero-shot", labelled, key)
    np.testing.assert_array_equal(same, images.prototypes)
    learnt = teacher_prototypes(config, images, "few-shot", labelled, key)
    assert teacher_accuracy(config, images, learnt) > before + 0.05


@pytest.mark.slow
def test_rows_share_the_first_round_and_a_stopped_run_goes_on(tmp_path: Path):
    methods = ("activekd + random", "activekd + pcoreset")
    config = replace(SHORT, teachers=("zero-shot",), ce_shares=(0.5,), methods=methods)
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
    curves = {r.method: r.curve for r in records if r.curve}
    assert set(curves) == set(methods)
    assert len({curve[0] for curve in curves.values()}) == 1
    radius = {r.method: r.value for r in records if r.metric == "cover_radius"}
    assert radius["activekd + pcoreset"] < radius["activekd + random"]
    first, last = (
        tmp_path / f"zero-shot/activekd + pcoreset/seed0/round{i}" for i in (0, 1)
    )
    picks = {r.metric: r for r in read_part(first)}["picks"].curve
    assert len(set(picks)) == 10
    assert "picks" not in {r.metric for r in read_part(last)}
    # The last round is lost; the first is not done again.
    kept = json.loads((first / "records.json").read_text())["records"]
    for record in kept:
        if record["metric"] == "accuracy":
            record["value"] = 0.125
    (first / "records.json").write_text(json.dumps(kept))
    shutil.rmtree(last)
    again = EXPERIMENT.records(replace(config, methods=methods[1:]), [0], Run(tmp_path))
    resumed = next(r.curve for r in again if r.curve)
    assert resumed == (0.125, curves["activekd + pcoreset"][1])


@pytest.mark.slow
def test_the_few_shot_teacher_knows_the_labels_of_the_round_before(tmp_path: Path):
    config = replace(
        SHORT,
        rounds=2,
        teachers=("few-shot",),
        ce_shares=(0.5,),
        methods=("activekd + random",),
        clap_passes=60,
    )
    EXPERIMENT.records(config, [0], Run(tmp_path))
    rounds = (tmp_path / f"few-shot/activekd + random/seed0/round{i}" for i in range(3))
    found = [{r.metric: r.value for r in read_part(folder)} for folder in rounds]
    taught = [values["teacher_accuracy"] for values in found]
    # Ten labels, in batches of ten: their order changes the last digits only.
    assert taught[0] == pytest.approx(taught[1], abs=0.005)
    assert abs(taught[2] - taught[0]) > 0.005


def test_every_row_has_its_rule():
    predictions = np.ones((2, 2), "f4")
    both = predictions, predictions
    rules = selections(jax.random.key(0), both, both, np.arange(2), 1)
    assert tuple(rules) == RULES


def test_greedy_covers_of_tiny_pools_are_within_twice_the_optimum():
    probs = np.random.default_rng(0).dirichlet(np.ones(4), 50).astype("f4")
    assert 1 < worst_cover_ratio(probs, probs[:5], 0) <= 2


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    name = "embeddings/some.npz"
    with pytest.raises(FileNotFoundError, match=r"some\.npz.*prototypes"):
        read_embeddings(name, 3, 2)
    (tmp_path / "embeddings").mkdir()
    arrays = {
        "features": np.ones((3, 2)),
        "labels": np.zeros(3, int),
        "test_features": np.ones((2, 2)),
        "test_labels": np.zeros(2, int),
    }
    np.savez(tmp_path / name, **arrays)
    with pytest.raises(ValueError, match=r"some\.npz lacks the arrays prototypes"):
        read_embeddings(name, 3, 2)
    np.savez(tmp_path / name, **arrays, prototypes=np.ones((2, 5)))
    assert read_embeddings(name, 3, 2)["prototypes"].shape == (2, 5)
    with pytest.raises(ValueError, match="has 3 rows of labels but needs 4"):
        read_embeddings(name, 4, 2)
    with pytest.raises(FileNotFoundError, match=r"resnet18\.npz is missing"):
        student_network(PRESETS["paper"], 102)


def test_unknown_names_are_refused(tmp_path):
    for change, message in (
        ({"methods": ("activekd + pcore",)}, r"unknown method 'activekd \+ pcore'"),
        ({"teachers": ("zero",)}, "unknown teacher 'zero'"),
        ({"student": "mpl"}, "unknown student 'mpl'"),
    ):
        with pytest.raises(ValueError, match=message):
            EXPERIMENT.records(replace(SHORT, **change), [0], Run(tmp_path))
