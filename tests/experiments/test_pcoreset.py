"""PCoreSet's protocol, data and rounds, which only long runs would show broken."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.pcoreset.config import METHODS, PRESETS, SELECTIONS
from experiments.pcoreset.experiment import CLAIMS, full_scale, run
from experiments.pcoreset.rounds import select, worst_cover_ratio
from experiments.pcoreset.students import learning_rate, make_network
from experiments.pcoreset.tasks import (
    load_task,
    read_embeddings,
    teacher_logits,
    teacher_prototypes,
)
from jaxkd.reporting.experiment import Run

SHORT = replace(PRESETS["small"], rounds=1, length=3, clap_passes=2)


def test_the_presets_are_the_protocols():
    small, paper, imagenet = (PRESETS[n] for n in ("small", "paper", "imagenet"))
    assert (small.rounds, small.steps(10, 1000), small.batch_size) == (6, 300, 32)
    assert (small.learning_rate, small.scale) == (3e-3, 12)
    assert (paper.rounds, paper.batch_size, paper.learning_rate) == (15, 64, 1e-3)
    assert (paper.weight_decay, paper.schedule, paper.scale) == (0.01, "linear", 100)
    assert paper.steps(128, 4000) == 200 * 128 // 64
    assert (imagenet.rounds, imagenet.candidates) == (8, 100_000)
    assert (imagenet.ce_shares, imagenet.kd_temperature) == ((0.4, 0.2), 0.5)
    assert imagenet.steps(1000, 1_280_000) == 20 * 5000
    assert {claim.setting for claim in CLAIMS} == set(small.teachers)
    assert {claim.method for claim in CLAIMS} <= {*METHODS, ""}


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [0, 1, 0.5, 0]),
        ("cosine", [1, 0.97553, 0.42178, 0]),
    ],
)
def test_the_rates_over_a_round(schedule, rates):
    config = replace(PRESETS["small"], schedule=schedule, learning_rate=2.0)
    rate = learning_rate(config, 100)
    found = [float(rate(step)) / 2 for step in (0, 10, 55, 100)]
    np.testing.assert_allclose(found, rates, atol=1e-4)


def test_digits_and_their_two_teachers():
    task = load_task(SHORT)
    assert (len(task.train), len(task.test)) == (1297, 500)
    np.testing.assert_allclose(np.linalg.norm(task.features, axis=1), 1, rtol=1e-5)

    def accuracy(prototypes):
        logits = teacher_logits(SHORT, task.test_features, prototypes)
        assert np.abs(logits).max() <= 12.001
        return np.mean(logits.argmax(1) == task.test_labels)

    assert accuracy(task.prototypes) == pytest.approx(0.74, abs=0.01)
    labelled, config = np.arange(300), replace(SHORT, clap_passes=20)
    key = jax.random.key(0)
    same = teacher_prototypes(config, task, "zero-shot", labelled, key)
    np.testing.assert_array_equal(same, task.prototypes)
    learnt = teacher_prototypes(config, task, "few-shot", labelled, key)
    assert accuracy(learnt) > accuracy(task.prototypes) + 0.05


@pytest.mark.slow
def test_every_method_runs_and_a_stopped_run_goes_on(tmp_path: Path):
    config = replace(SHORT, teachers=("zero-shot",), ce_shares=(0.5,))
    records = run(config, (0,), Run(tmp_path))
    assert {r.method for r in records if r.metric == "mean_accuracy"} == set(METHODS)
    curves = {r.method: r.curve for r in records if r.metric == "last_accuracy"}
    assert all(len(curves[method]) == 2 for method in METHODS)
    # The first round's students are the same whatever selects.
    assert len({curves[m][0] for m in METHODS if m.startswith("activekd")}) == 1
    radius = {r.method: r.value for r in records if r.metric == "cover_radius"}
    assert radius["activekd + pcoreset"] < radius["activekd + random"]
    part = tmp_path / "zero-shot/activekd-pcoreset/seed0"
    kept = json.loads((part / "rounds.json").read_text())
    assert len(set(kept[0]["picks"])) == 10
    assert kept[1]["picks"] == []
    # The last round is lost; the first is not done again.
    kept[0]["accuracy"] = 0.125
    (part / "rounds.json").write_text(json.dumps(kept[:1]))
    (part / "records.json").unlink()
    again = run(replace(config, methods=METHODS[-1:]), (0,), Run(tmp_path))
    resumed = next(r.curve for r in again if r.curve)
    assert resumed == (0.125, curves["activekd + pcoreset"][1])


@pytest.mark.slow
def test_the_few_shot_teacher_knows_the_labels_of_the_round_before(tmp_path: Path):
    methods = ("no distillation + random", "activekd + random")
    config = replace(
        SHORT,
        rounds=2,
        teachers=("few-shot",),
        ce_shares=(0.5,),
        methods=methods,
        clap_passes=60,
    )
    records = run(config, (0,), Run(tmp_path))
    assert {r.setting for r in records} == {"few-shot"}
    file = tmp_path / "few-shot/activekd-random/seed0/rounds.json"
    taught = [entry["teacher_accuracy"] for entry in json.loads(file.read_text())]
    # Ten labels, in batches of ten: their order changes the last digits only.
    assert taught[0] == pytest.approx(taught[1], abs=0.005)
    assert abs(taught[2] - taught[0]) > 0.005


def test_every_selection_picks_as_many_as_asked():
    rng = np.random.default_rng(0)
    pool, labelled = (
        (
            rng.dirichlet(np.ones(3), n).astype("f4"),
            rng.normal(size=(n, 4)).astype("f4"),
        )
        for n in (12, 3)
    )
    for selection in SELECTIONS:
        picks = select(
            selection, jax.random.key(0), pool, labelled, np.array([0, 1, 2]), 5
        )
        assert len(set(picks.tolist())) == 5
    with pytest.raises(ValueError, match="did you mean 'pcoreset'"):
        select("pcorset", jax.random.key(0), pool, labelled, np.zeros(3, int), 1)


def test_greedy_covers_of_tiny_pools_are_within_twice_the_optimum():
    probs = np.random.default_rng(0).dirichlet(np.ones(4), 50).astype("f4")
    assert 1 < worst_cover_ratio(probs, probs[:5], 0) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "imagenet"])
def test_full_scale_programs_have_shapes(preset):
    ((name, (program, batch)),) = full_scale(PRESETS[preset]).items()
    assert PRESETS[preset].student in name
    assert len(batch["image"]) % 8 == 0
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(program.step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {"loss", "ce", "kd_labelled", "kd_unlabelled"} <= set(metrics)


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
    with pytest.raises(ValueError, match="lacks it but prototypes needs"):
        read_embeddings(name, 3, 2)
    np.savez(tmp_path / name, **arrays, prototypes=np.ones((2, 5)))
    assert read_embeddings(name, 3, 2)["prototypes"].shape == (2, 5)
    with pytest.raises(ValueError, match="has 3 but labels needs 4 rows"):
        read_embeddings(name, 4, 2)
    with pytest.raises(FileNotFoundError, match=r"resnet18\.npz is missing"):
        make_network(PRESETS["paper"], 102)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown method 'activekd \+ pcore'"):
        run(replace(SHORT, methods=("activekd + pcore",)), (0,), Run(tmp_path))
    with pytest.raises(ValueError, match="unknown teacher 'zero'"):
        run(replace(SHORT, teachers=("zero",)), (0,), Run(tmp_path))
