"""EdgeFD's experiment: the protocol, its claims, and a run of seconds."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from experiments.edgefd import experiment
from experiments.edgefd.config import PRESETS, Config, table
from experiments.edgefd.division import divide, load_dataset, rounds_of
from experiments.edgefd.filters import FILTERS, Federation, filter_quality
from jaxkd.reporting.experiment import Run

METHODS = ["local", "fedmd", "dsfl", "selective_fd", "edgefd", "oracle"]


def test_the_presets_are_the_protocol():
    small, paper = PRESETS["small"], PRESETS["paper"]
    assert (small.train_examples, small.clients, small.rounds) == (1400, 10, 30)
    assert (small.local_steps, small.local_batch_size) == (10, 32)
    assert (small.distill_steps, small.distill_batch_size) == (10, 64)
    assert (small.optimizer, small.learning_rate) == ("adam", 1e-3)
    assert (small.proxy_share, small.centroids, small.percentile) == (0.2, 5, 95.0)
    assert small.temperature == 1
    assert paper.datasets == ("tfds/mnist", "tfds/fashion_mnist", "tfds/cifar10")
    assert (paper.clients, paper.rounds, paper.proxy_size) == (10, 20_000, 5120)
    assert (paper.local_steps, paper.local_batch_size) == (1, 64)
    assert (paper.distill_steps, paper.distill_batch_size) == (10, 512)
    assert (paper.optimizer, paper.learning_rate, paper.decay_every) == (
        "sgd",
        0.1,
        5000,
    )
    known = {
        table(dataset, kind)
        for preset in PRESETS.values()
        for dataset in preset.datasets
        for kind in preset.partitions
    }
    costs = {"cost on digits, 64 features", "cost on mnist, 784 features"}
    assert {claim.setting for claim in experiment.CLAIMS} == known | costs


def test_the_digits_are_cut_in_1400_and_397():
    dataset, scale = load_dataset(PRESETS["small"], "digits")
    assert (len(dataset.train), len(dataset.test)) == (1400, 397)
    assert scale is None
    joined = np.concatenate(
        [dataset.train.arrays["image"], dataset.test.arrays["image"]]
    )
    assert len(np.unique(joined.reshape(1797, -1), axis=0)) > 1790


def test_full_scale_rounds_have_their_shapes():
    programs = experiment.full_scale(PRESETS["paper"])
    assert list(programs) == list(PRESETS["paper"].datasets)
    for program, batch in programs.values():
        state = jax.eval_shape(program.init, jax.random.key(0), batch)
        after, metrics = jax.eval_shape(program.step, state, batch)
        chex.assert_trees_all_equal_shapes(after, state)
        assert metrics["loss"].shape == ()
        assert jax.tree.leaves(state.clients)[0].shape[0] == 10


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
    masks = FILTERS[name](federation, 3, 99.0)
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
        rounds=1,
        local_steps=1,
        distill_steps=1,
        evaluate_every=1,
        cost_datasets=("digits",),
    )
    records = experiment.run(config, (0,), Run(tmp_path))
    for kind in ("weak", "iid"):
        mine = [r for r in records if r.setting == kind]
        accuracy = {r.method: r for r in mine if r.metric == "last_accuracy"}
        assert list(accuracy)[:6] == METHODS
        assert all(len(r.curve) == 1 for r in accuracy.values())
        kilobytes = {r.method: r.value for r in mine if r.metric == "upload_kb"}
        assert "local" not in kilobytes
        assert kilobytes["edgefd"] < kilobytes["fedmd"] == 2 * 40 * 44 / 1000
    reference = [r for r in records if r.method == "edgefd_iid"]
    assert [r.setting for r in reference] == ["weak"]
    costs = {r.method: r.value for r in records if r.metric == "filter_ms"}
    assert costs.keys() == {"kmeans", "kulsif_fit", "kulsif"}
    # Finished parts are read again.
    again = experiment.run(config, (0,), Run(tmp_path))
    assert again == records


def test_rounds_take_as_many_proxies_as_clients_share_evenly():
    config = replace(PRESETS["small"], rounds=1)
    dataset, scale = load_dataset(config, "digits")
    features = dataset.train.arrays["image"].reshape(1400, -1)
    labels = dataset.train.arrays["label"]
    federation = divide(config, labels, features, "strong", 0)
    masks = FILTERS["oracle"](federation, 5, 95.0)
    rounds = rounds_of(config, dataset.train, federation, masks, scale)
    assert rounds.proxy_size % 10 == 0
    assert 0 <= len(federation.proxies) - rounds.proxy_size < 10


def test_the_paper_preset_says_what_to_prepare(monkeypatch, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="tfds build mnist --file_format=array"):
        experiment.run(PRESETS["paper"], (0,), Run(tmp_path))
