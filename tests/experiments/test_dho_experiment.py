"""DHO's arms: what they train, measure and load, on a few images."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from experiments.dho import images as loading
from experiments.dho.config import DIGITS, IMAGENET
from experiments.dho.experiment import EXPERIMENT, PRESETS
from experiments.dho.students import cosines, one_head
from jaxkd import data, interop, networks
from jaxkd import models as zoo
from jaxkd.reporting.run import Run

HEADS = ("ce.logits", "kd.logits")


@pytest.mark.slow
def test_one_head_is_pulled_two_ways_and_its_features_too():
    """The teacher says another class than the label, everywhere."""
    network = zoo.mlp(4, (8,), 3)
    batch = {
        "image": jax.random.normal(jax.random.key(0), (6, 2, 2, 1)),
        "label": jnp.zeros(6, int),
        "labelled": jnp.ones(6, bool),
        "teacher_logits": jnp.tile(jnp.array([0.0, 0, 9]), (6, 1)),
    }
    single, double = one_head(network), networks.dual_head(network, 8, 3)
    found = cosines(single, single.init(jax.random.key(1)), batch)
    assert found["head_cosine"] < -0.3
    assert found["gradient_cosine"] < -0.1
    apart = cosines(double, double.init(jax.random.key(1)), batch)
    assert apart["head_cosine"] == 0
    assert apart["gradient_cosine"] != 0


@pytest.mark.slow
def test_the_mixture_is_chosen_on_validation_alone(tmp_path, monkeypatch):
    """Other test labels change what is measured, not the mixture."""
    table = replace(DIGITS, pool=64, epochs=2, rows=("sho_0.5", "dho"))
    monkeypatch.setattr("experiments.dho.experiment.TABLES", {"digits": table})
    config = replace(PRESETS["small"], tables=("digits",))
    found = []
    for shift in (0, 1):
        digits = data.digits()
        label = (digits.test.arrays["label"] + shift) % 10
        test = data.Source("test", {**digits.test.arrays, "label": label}, 10)
        changed = replace(digits, test=test)
        monkeypatch.setattr(loading.data, "load", lambda name, c=changed: c)
        records = EXPERIMENT.records(config, [0], Run(tmp_path / str(shift)))
        found.append({(r.method, r.metric): r.value for r in records})
    for key in (("dho", "alpha"), ("dho", "beta"), ("sho_0.5", "gradient_cosine")):
        assert found[0][key] == found[1][key]
    assert found[0]["dho", "last_accuracy"] != found[1]["dho", "last_accuracy"]
    for kept in found:
        both = kept["dho", "label_head"], kept["dho", "teacher_head"]
        assert kept["dho", "better_head"] == max(both)


@pytest.mark.slow
def test_a_clip_folder_and_a_prepared_data_set_are_read(tmp_path, monkeypatch):
    words = ["<s>", "</s>", "a", "photo", "of", ".", "cat", "dog"]
    tokenizer = Tokenizer(models.WordLevel(dict(zip(words, range(8), strict=True))))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "clip"
    clip = zoo.clip(
        *((12, 1, 3, 20), (8, 1, 2, 12)),
        features=6,
        image_size=8,
        patch_size=4,
        vocabulary=8,
        context=9,
        eos=1,
    )
    interop.save_pretrained(folder, clip, jax.jit(clip.init)(jax.random.key(0)))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = '{"bos_token": "<s>", "eos_token": "</s>"}'
    (folder / "tokenizer_config.json").write_text(names)
    (folder / "names.txt").write_text("cat\ndog\n")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    source = data.Source("few", {"image": image, "label": np.arange(6) % 2}, 2)
    monkeypatch.setattr(
        loading.data,
        "tfds_dataset",
        lambda *args, **kwargs: data.Dataset(source, source, (0.5,) * 3, (0.2,) * 3),
    )
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    table = replace(IMAGENET, weights="clip", shots=2)
    found = loading.few_labels(table, Run(tmp_path), "", 0)
    assert sorted(source.arrays["label"][found.labelled]) == [0, 0, 1, 1]
    assert found.transform is not None
    batch = found.transform(source.take(np.arange(3)), np.random.default_rng(0))
    said = {}
    for name, teacher in found.teachers.items():
        variables = teacher.init(jax.random.key(1))
        inputs = teacher.read(batch, "teacher")
        said[name] = teacher.apply(variables, inputs)[0].logits
        assert said[name].shape == (3, 2)
    assert np.abs(said["zero-shot"]).max() <= 100.001
    assert np.abs(said["zero-shot"] - said["few-shot"]).max() > 0


def test_unknown_rows_are_refused(tmp_path):
    config = replace(PRESETS["small"], rows=("dhoo",))
    with pytest.raises(ValueError, match="unknown row 'dhoo': did you mean 'dho'"):
        EXPERIMENT.records(config, [0], Run(tmp_path))
