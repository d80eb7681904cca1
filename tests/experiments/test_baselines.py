"""The baselines' pairs and rows, which only long runs would show broken."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.config import PRESETS
from experiments.baselines.experiment import EXPERIMENT, wanted
from experiments.baselines.paper import COLUMNS, PAPER
from experiments.baselines.recipes import Pair, classifier, recipes, stage_norms
from experiments.common.classification import ImagesConfig
from experiments.common.networks import PAIRS, PAPER_PAIRS
from jaxkd import models
from jaxkd.reporting.run import Run

DIGITS = ("mlp", "mlp8", "cnn")


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_has_its_stages_norms_and_classifier(pair):
    spec = PAIRS[pair]
    student, teacher = spec.networks(10 if pair in DIGITS else 100)
    side = 8 if pair in DIGITS else 16 if pair in PRESETS["cifar"].pairs else 32
    image = jnp.zeros((2, side, side, 1 if pair in DIGITS else 3))
    taps = (*spec.stages, *(f"{stage}.pre" for stage in spec.stages), "pooled")

    def forward(network):
        variables = network.init(jax.random.key(0))
        return variables, network.apply(variables, image, taps=taps)[0]

    variables, outputs = jax.eval_shape(lambda: forward(teacher))
    _, found = jax.eval_shape(lambda: forward(student))
    norms = stage_norms(spec.teacher.name, variables, spec.stages)
    for stage, (scale, bias) in zip(spec.stages, norms, strict=True):
        channels = outputs.features[f"{stage}.pre"].shape[-1]
        assert scale.shape == bias.shape == (channels,)
        assert found.features[stage].ndim == 4
    kernel, bias = classifier(variables)
    assert kernel.shape == (outputs.features["pooled"].shape[-1], *bias.shape)
    assert outputs.logits.shape == found.logits.shape == (2, *bias.shape)


def test_the_papers_numbers_are_of_our_pairs_and_methods():
    assert PAPER["resnet56-resnet20/kd"]["last_accuracy"].value == 0.7066
    assert PAPER["wrn40_2-wrn40_1/dist"]["best_accuracy"].value == 0.7443
    assert "wrn40_2-wrn40_1/fsp" not in PAPER
    assert PRESETS["paper"].pairs == PAPER_PAIRS == COLUMNS
    nothing = models.mlp()
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    spec, labels = PAIRS["resnet56-resnet20"], np.arange(64) % 10
    pair = Pair(spec, nothing, None, None, None, labels, image, 1, 20, 30)
    known = {"teacher", *recipes(pair)}
    for name in PAPER:
        pair, method = name.split("/")
        assert pair in PAPER_PAIRS
        assert method in known


def test_every_claim_is_about_a_pair_of_a_preset():
    known = {pair for preset in PRESETS.values() for pair in preset.pairs}
    assert {c.setting for c in EXPERIMENT.claims if c.setting} <= known


def test_wanted_methods():
    def of(pair, *methods):
        return wanted(replace(PRESETS["small"], methods=methods), pair, ["kd", "sp"])

    assert of("cnn") == ["kd", "sp"]
    assert of("cnn", "kd", "mlp/sp") == ["kd"]
    assert of("mlp", "kd", "mlp/sp") == ["kd", "sp"]
    with pytest.raises(ValueError, match="unknown cnn method 'kdd': did you mean 'kd'"):
        of("cnn", "kdd")
    with pytest.raises(ValueError, match="unknown pair 'cnnn': did you mean 'cnn'"):
        of("cnn", "cnnn/kd")


def test_an_unknown_name_is_refused_before_anything_is_trained(tmp_path):
    for changes, message in (
        ({"pairs": ("mpl",)}, "unknown pair 'mpl': did you mean 'mlp'"),
        ({"methods": ("mlp/kd", "cnn/att")}, "unknown cnn method 'att': did you m"),
    ):
        config = replace(PRESETS["small"], **changes)
        with pytest.raises(ValueError, match=message):
            EXPERIMENT.records(config, (0,), Run(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_images_are_cut_and_averaged_down():
    found = ImagesConfig().load(PRESETS["small"].optimizer)
    assert (len(found.train), len(found.test)) == (1000, 797)
    cut = ImagesConfig(test_examples=100, shrink=2).load(PRESETS["small"].optimizer)
    assert cut.test.arrays["image"].shape == (100, 4, 4, 1)


def test_the_paper_preset_says_what_to_prepare(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(
        FileNotFoundError, match="tfds build cifar100 --file_format=arr"
    ):
        EXPERIMENT.records(PRESETS["paper"], (0,), Run(tmp_path))
