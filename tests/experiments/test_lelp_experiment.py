"""LELP's experiment: finer labels, clusters of a class, and a run of seconds."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.configs import NetworkConfig
from experiments.lelp.clusters import assigned, purity, random_directions
from experiments.lelp.experiment import EXPERIMENT, spread
from experiments.lelp.settings import CLUSTERED, DIGITS, SETTINGS, coarse, questions
from jaxkd.data import RecordSource, Source
from jaxkd.losses import subclass_targets
from jaxkd.reporting.run import Run
from jaxkd.types import Outputs

RNG = np.random.default_rng(0)
labels = np.repeat(np.arange(2), 30)
KINDS = np.arange(60) % 3
# Three kinds far apart in each of two classes.
FEATURES = RNG.normal(0, 0.1, (60, 4)) + np.eye(4)[KINDS] * 5
FEATURES = FEATURES.astype("f4")


def test_a_finer_label_is_made_coarse_wherever_the_examples_are():
    label = np.arange(10, dtype=np.int32)
    source = Source("ten", {"image": np.zeros((10, 2), "f4"), "label": label}, 10)
    records = RecordSource(
        "ten", list(label), lambda x, rng: {"image": np.zeros(2, "f4"), "label": x}, 10
    )
    for some in (source, records):
        found = coarse(some, 2)
        assert found.classes == 2
        np.testing.assert_array_equal(found.take(label)["label"], label // 5)


@pytest.mark.parametrize("row", [row for row in CLUSTERED if row != "tsne_kmeans"])
def test_clusters_stay_in_their_class(row):
    found = assigned(row, FEATURES, labels, 2, 3, jax.random.key(0))
    np.testing.assert_array_equal(found // 3, labels)
    pure = purity(found, 3 * labels + KINDS)
    assert pure == 1 if row == "agglomerative" else pure > 1 / 3


def test_purity_is_the_share_of_the_most_frequent_kind():
    assert purity(np.array([0, 0, 0, 1, 1]), np.array([2, 2, 0, 1, 0])) == 0.6


def test_random_directions_have_mean_variance_1_in_a_class():
    found = random_directions(FEATURES, labels, 2, 3, jax.random.key(0))
    for c in range(2):
        kinds = FEATURES[labels == c] @ np.asarray(found.directions[c])
        np.testing.assert_allclose(np.var(kinds, axis=0).mean(), 1, rtol=1e-4)
    logits = jnp.zeros((60, 2))
    shares = np.exp(subclass_targets(jnp.asarray(FEATURES), logits, found))
    np.testing.assert_allclose(shares.sum(-1), 0.5, rtol=1e-5)


def test_spread_is_the_formula_of_two_opposed_examples():
    z = jnp.array([[2.0, 0.5], [0.0, 0.5]])
    student = Outputs(z, {"subclass.logits": z})
    loss, _ = spread().loss({"state": {}}, student, None, {"label": z[:, 0]}, None, 0)
    expected = np.log(np.e + 1 / np.e) - 1 - np.log(2)
    np.testing.assert_allclose(loss.value, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif("JAXKD_DATA" not in os.environ, reason="JAXKD_DATA is not set")
def test_questions_have_six_classes_of_five():
    found = questions(5)
    assert (len(found.train), len(found.test)) == (5452, 500)
    counts = np.bincount(found.train.arrays["label"], minlength=30)
    # Numbers of the file: 1,162 descriptions, 86 abbreviations of two kinds.
    assert counts.reshape(6, 5).sum(1).tolist() == [86, 1162, 1250, 1223, 835, 896]
    assert counts[:5].tolist() == [70, 16, 0, 0, 0]


@pytest.mark.slow
def test_a_short_run_has_all_rows(tmp_path, monkeypatch):
    tiny = replace(
        DIGITS,
        teacher=NetworkConfig("mlp", {"features": 64, "widths": (16, 12)}),
        student=NetworkConfig("mlp", {"features": 64, "widths": (4,)}),
        task=replace(DIGITS.task, epochs=1),
        teacher_epochs=2,
        methods=("kd", "subclass_distillation", "kmeans", "lelp", "oracle"),
    )
    name = next(iter(SETTINGS))
    monkeypatch.setitem(SETTINGS, name, tiny)
    config = replace(EXPERIMENT.presets["small"], settings=(name,))
    found = EXPERIMENT.records(config, [0], Run(tmp_path))
    rows = {*tiny.methods, "teacher", "subclass_teacher"}
    assert {r.method for r in found} == rows
    measured = {r.metric: r.value for r in found if r.method == "lelp"}
    assert measured["target_error"] < 1e-5
    assert measured["read_share"] < 1e-5
    assert measured["variance_ratio"] >= 1
    assert 0.2 < measured["purity"] <= 1
