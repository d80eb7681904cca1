"""The baselines' pairs and configurations, which only long runs would show broken."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines import networks
from experiments.baselines.experiment import (
    CLAIMS,
    PRESETS,
    Job,
    load_dataset,
    run,
    shrunk,
    wanted,
)
from experiments.baselines.networks import PAIRS, PAPER_PAIRS, stage_norms
from experiments.baselines.paper import COLUMNS, PAPER
from experiments.baselines.recipes import Pair, logit_recipes, stage_recipes
from experiments.common.training import build
from jaxkd import data, models

SIZES = {"mlp": (8, 1), "mlp8": (8, 1), "cnn": (8, 1)}


def shapes(spec, who, taps=()):
    """Return the shapes of a network's variables and outputs on its data set."""
    classes = 10 if spec in SIZES else 100
    network = build(getattr(PAIRS[spec], who), classes)
    side, channels = SIZES.get(spec, (16 if spec in PRESETS["cifar"].pairs else 32, 3))

    def forward(key):
        variables = network.init(key)
        image = jnp.zeros((2, side, side, channels))
        return variables, network.apply(variables, image, taps=taps)[0]

    return jax.eval_shape(forward, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_has_its_stages_norms_and_classifier(pair):
    spec = PAIRS[pair]
    taps = (*spec.stages, *(f"{stage}.pre" for stage in spec.stages), "pooled")
    teacher, outputs = shapes(pair, "teacher", taps)
    _, student = shapes(pair, "student", taps)
    norms = stage_norms(spec.teacher, teacher, spec.stages)
    for stage, (scale, bias) in zip(spec.stages, norms, strict=True):
        channels = outputs.features[f"{stage}.pre"].shape[-1]
        assert scale.shape == bias.shape == (channels,)
        assert student.features[stage].ndim == 4
    kernel, bias = networks.classifier(teacher)
    assert kernel.shape == (outputs.features["pooled"].shape[-1], *bias.shape)
    assert outputs.logits.shape == student.logits.shape == (2, *bias.shape)


def test_the_paper_preset_is_the_benchmarks_protocol():
    paper = PRESETS["paper"]
    assert (paper.epochs, paper.batch_size, paper.optimizer) == (240, 64, "sgd")
    assert (paper.learning_rate, paper.weight_decay) == (0.05, 5e-4)
    assert paper.milestones == (150, 180, 210)
    assert paper.pairs == PAPER_PAIRS == COLUMNS
    job = Job("resnet56-resnet20", paper, None, (), None)
    # The rate over the epochs, from what the optimizer does to a gradient of 1.
    optimizer = job.optimizer(0.05, 240)(240)
    state = optimizer.init(np.zeros(()))
    for epoch in (0, 149, 150, 180, 210):
        at = jax.tree.map(
            lambda x, e=epoch: x * 0 + e if x.dtype == "int32" else x, state
        )
        update, _ = optimizer.update(np.ones(()), at, np.zeros(()))
        expected = 0.05 * 0.1 ** sum(epoch >= m for m in paper.milestones)
        np.testing.assert_allclose(-update, expected, rtol=1e-5)


def test_depthwise_students_train_at_a_fifth_of_the_rate():
    for pair in PAPER_PAIRS:
        share = 0.2 if "mobilenet" in pair or "shufflenet" in pair else 1.0
        assert PAIRS[pair].learning_rate == share


def test_the_papers_numbers_are_of_our_pairs_and_methods():
    assert PAPER["resnet56-resnet20/kd"] == {"last_accuracy": 0.7066}
    assert PAPER["wrn40_2-wrn40_1/dist"] == {"best_accuracy": 0.7443}
    assert "wrn40_2-wrn40_1/fsp" not in PAPER
    known = {"teacher", *_recipes("resnet56-resnet20")}
    for name in PAPER:
        pair, method = name.split("/")
        assert pair in PAPER_PAIRS
        assert method in known


def _recipes(name):
    spec = PAIRS[name]
    pair = Pair(
        models.mlp(),
        models.mlp(),
        classifier=None,
        norms=[(jnp.ones(4), jnp.zeros(4)) for _ in spec.stages],
        peer=None,
        labels=np.arange(64) % 10,
        batches=None,
        steps_per_epoch=1,
        warmup_epochs=20,
        stage_one_epochs=30,
        stages=spec.stages,
        branched=None,
        dkd_beta=spec.dkd_beta,
    )
    return {**logit_recipes(pair), **(stage_recipes(pair, 0) if spec.stages else {})}


def test_every_claim_is_about_a_pair_of_a_preset():
    known = {pair for preset in PRESETS.values() for pair in preset.pairs}
    assert {claim.setting for claim in CLAIMS if claim.setting} <= known


def test_wanted_methods():
    def of(pair, *methods):
        config = replace(PRESETS["small"], methods=methods)
        return wanted(SimpleNamespace(setting=pair, config=config), ["kd", "sp"])

    assert of("cnn") == ["kd", "sp"]
    assert of("cnn", "kd", "mlp/sp") == ["kd"]
    assert of("mlp", "kd", "mlp/sp") == ["kd", "sp"]
    with pytest.raises(ValueError, match="unknown cnn method 'kdd': did you mean 'kd'"):
        of("cnn", "kdd")
    with pytest.raises(ValueError, match="unknown pair 'cnnn': did you mean 'cnn'"):
        of("cnn", "cnnn/kd")


def test_an_unknown_pair_is_refused():
    config = replace(PRESETS["small"], pairs=("mpl",))
    with pytest.raises(ValueError, match="unknown pair 'mpl': did you mean 'mlp'"):
        run(config, (0,), None)


def test_shrunk_averages_blocks():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    source = data.Source("toy", {"image": image, "label": np.zeros(1, int)}, 2)
    small = shrunk(source, 2)
    assert small.arrays["image"].dtype == np.uint8
    # 2.5 and 12.5 are rounded to even numbers.
    assert small.arrays["image"][0, :, :, 0].tolist() == [[2, 4], [10, 12]]
    assert small.name == "toy/2x2"
    # Images that are scaled already keep their fractions.
    scaled = data.Source("toy", {**source.arrays, "image": image / 16.0}, 2)
    found = shrunk(scaled, 2).arrays["image"][0, :, :, 0]
    np.testing.assert_allclose(found, [[2.5 / 16, 4.5 / 16], [10.5 / 16, 12.5 / 16]])


def test_the_data_of_the_small_preset():
    found = load_dataset(PRESETS["small"])
    assert (len(found.train), len(found.test)) == (1000, 797)
    cut = load_dataset(replace(PRESETS["small"], test_examples=100, shrink=2))
    assert cut.test.arrays["image"].shape == (100, 4, 4, 1)


def test_the_paper_preset_says_what_to_prepare(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(
        FileNotFoundError, match="tfds build cifar100 --file_format=arr"
    ):
        load_dataset(PRESETS["paper"])
