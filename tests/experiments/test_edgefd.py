"""EdgeFD's experiment: the protocol, its claims, and a run of seconds."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.edgefd.config import PRESETS, Config
from experiments.edgefd.experiment import EXPERIMENT, rounds_of
from experiments.edgefd.federation import (
    Federation,
    divide,
    filter_quality,
    load_dataset,
    shared,
)
from jaxkd.reporting.run import Run

METHODS = ["local", "fedmd", "dsfl", "selective_fd", "edgefd", "oracle"]


def test_the_digits_are_cut_in_1400_and_397():
    dataset, scale = load_dataset(PRESETS["small"], "digits")
    assert (len(dataset.train), len(dataset.test)) == (1400, 397)
    assert scale is None
    joined = np.concatenate(
        [dataset.train.arrays["image"], dataset.test.arrays["image"]]
    )
    assert len(np.unique(joined.reshape(1797, -1), axis=0)) > 1790


@pytest.fixture(scope="module")
def federation():
    """Two clients of three classes each, on two well-parted features."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 40)
    corners = np.stack([labels % 3, labels // 3], 1) * 8.0
    features = (corners + rng.normal(size=(240, 2))).astype("f4")
    parts = [np.arange(120), np.arange(120, 240)]
    proxies = np.arange(0, 240, 4)
    return Federation(features, labels, parts, proxies, proxies // 120, 0)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("edgefd", 0.95), ("oracle", 1.0), ("selective_fd", 0.6), ("fedmd", 0.5)],
)
def test_filters_let_pass_what_is_like_a_clients_data(federation, name, precision):
    masks = shared(name, Config(centroids=3, percentile=99.0), federation)
    quality = filter_quality(masks, federation)
    assert quality["filter_precision"] >= precision
    assert quality["filter_recall"] >= 0.95
    own = federation.owner == np.arange(2)[:, None]
    assert masks[own].all()


def test_a_filters_quality_in_numbers(federation):
    masks = np.zeros((2, 60), bool)
    masks[0, :15] = masks[0, 30:35] = True
    quality = filter_quality(masks, federation)
    assert quality == {"filter_precision": 0.75, "filter_recall": 0.25}


@pytest.mark.slow
def test_a_run_of_seconds(tmp_path):
    config = Config(
        train_examples=200,
        clients=2,
        classes_per_client=5,
        partitions=("weak", "iid"),
        rounds=2,
        local_steps=1,
        distill_steps=1,
        evaluate_every=1,
        cost_datasets=("digits",),
    )
    records = EXPERIMENT.records(config, (0,), Run(tmp_path))
    for kind in ("weak", "iid"):
        mine = [r for r in records if r.setting == kind]
        accuracy = {r.method: r for r in mine if r.metric == "last_accuracy"}
        assert list(accuracy)[:6] == METHODS
        assert all(len(r.curve) == 2 for r in accuracy.values())
        kilobytes = {r.method: r.value for r in mine if r.metric == "upload_kb"}
        assert "local" not in kilobytes
        assert kilobytes["edgefd"] < kilobytes["fedmd"] == 2 * 40 * 44 / 1000
    reference = [r for r in records if r.method == "edgefd_iid"]
    assert [r.setting for r in reference] == ["weak"]
    costs = {r.method: r.value for r in records if r.metric == "filter_ms"}
    assert costs.keys() == {"kmeans", "kulsif_fit", "kulsif"}
    # Finished parts are read again.
    again = EXPERIMENT.records(config, (0,), Run(tmp_path))
    assert again == records


def test_rounds_take_as_many_proxies_as_clients_share_evenly():
    config = replace(PRESETS["small"], rounds=1)
    dataset, scale = load_dataset(config, "digits")
    features = dataset.train.arrays["image"].reshape(1400, -1)
    labels = dataset.train.arrays["label"]
    federation = divide(config, labels, features, "strong", 0)
    masks = shared("oracle", config, federation)
    rounds = rounds_of(config, dataset.train, federation, masks, scale)
    assert rounds.proxy_size % 10 == 0
    assert 0 <= len(federation.proxies) - rounds.proxy_size < 10


def test_the_paper_preset_says_what_to_prepare(monkeypatch, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="tfds build mnist --file_format=array"):
        EXPERIMENT.records(PRESETS["paper"], (0,), Run(tmp_path))
