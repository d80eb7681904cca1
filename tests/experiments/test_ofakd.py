"""OFA-KD's recipes as its authors' code has them, and a run of seconds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.configs import NetworkConfig
from experiments.ofakd import experiment
from experiments.ofakd.experiment import EXPERIMENT, SETTINGS, full_scale
from experiments.ofakd.settings import BLOCKS, TWELVE, TimmConfig
from jaxkd.reporting.run import Run

SMALL, FULL, IMAGENET = (EXPERIMENT.presets[n] for n in ("small", "paper", "imagenet"))


def test_stages_of_twelve_blocks_and_folders_of_teachers():
    assert TWELVE == ("block1", "block3", "block9", "block11")
    assert SETTINGS["swin_t-resnet18"].teacher_name == "swin-tiny-cifar100_224"


def rates(config, epochs):
    """Return the rate of each epoch, from what the optimizer does to a gradient."""
    optimizer = replace(config, weight_decay=0.0).build(epochs, epochs)
    params = {"bias": np.zeros(1, "f4")}
    state, found = optimizer.init(params), []
    step = jax.jit(lambda s: optimizer.update({"bias": jnp.ones(1)}, s, params))
    for _ in range(epochs):
        update, state = step(state)
        found.append(-float(update["bias"][0]))
    return np.array(found)


def test_the_rate_rises_and_falls_as_in_the_recipes():
    # Adam's steps on a constant gradient are of the rate's length.
    found = rates(SETTINGS["convnext_t-deit_t"].optimizer, 300)
    assert found[0] == pytest.approx(5e-7, rel=1e-3)
    assert found[10] == pytest.approx((5e-7 + 5e-4) / 2, rel=1e-2)
    cosine = 1e-5 + (5e-4 - 1e-5) * (1 + np.cos(np.pi * np.arange(300) / 300)) / 2
    np.testing.assert_allclose(found[20:], cosine[20:], rtol=1e-2)
    steps = SETTINGS["imagenet/deit_t-resnet18"].optimizer.rate(100, 100)
    assert [float(steps(epoch)) for epoch in (0, 3, 29, 31, 61, 91)] == pytest.approx(
        [1e-4, 0.1, 0.1, 1e-2, 1e-3, 1e-4], rel=1e-4
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_norms_do_not_decay(name):
    optimizer = TimmConfig(name, 1.0, 0.5).build(1)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    update, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert np.all(np.asarray(update["kernel"]) < 0)
    assert not np.any(update["scale"])


def test_mixup_and_cutmix_alternate():
    transform = SETTINGS["convnext_t-deit_t"].transform
    batch = {
        "image": np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("f4"),
        "label": np.arange(8, dtype="i4"),
    }
    found = set()
    for seed in range(8):
        mixed = transform(batch, np.random.default_rng(seed))
        # Pasted rectangles keep pixels that are the first image's own.
        found.add(bool(np.any(mixed["image"] == batch["image"])))
        np.testing.assert_allclose(mixed["label"].sum(-1), 1, rtol=1e-5)
    assert found == {True, False}
    assert transform(batch, None)["label"].ndim == 1


@pytest.mark.slow
def test_the_program_of_tokens_mixed_labels_and_an_average_trains(monkeypatch):
    name = "imagenet/swin_t-resmlp_s12"
    small = replace(
        SETTINGS[name],
        teacher=NetworkConfig("mlp", {"features": 224 * 224 * 3, "widths": (4,)}),
        student=NetworkConfig("resmlp", {"size": (8, 4)}),
        taps=BLOCKS,
    )
    monkeypatch.setitem(SETTINGS, name, small)
    ((program, batch),) = full_scale(replace(IMAGENET, settings=(name,))).values()
    assert batch["image"].shape == (1024, 224, 224, 3)
    assert batch["label"].shape == (1024, 1000)
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    assert state.average.keys() == state.program.student.keys()
    after, metrics = jax.eval_shape(program.step, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {"loss", "ofa_logits", "ofa_exits", "cross_entropy"} <= metrics.keys()


@pytest.mark.slow
def test_a_shrunk_run_has_records_of_all_methods(monkeypatch, tmp_path):
    setting = SETTINGS["digits-500"]
    small = replace(
        setting,
        task=replace(setting.task, test_examples=30),
        teacher=NetworkConfig("mlp", {"features": 64, "widths": (4,)}),
        student=NetworkConfig("mlp", {"features": 64, "widths": (4, 4, 4, 4)}),
        train_examples=100,
    )
    monkeypatch.setitem(SETTINGS, "digits-500", small)
    cnn = NetworkConfig("cnn", {"channels": (2, 2, 2, 2)})
    monkeypatch.setattr(experiment, "CNN", cnn)
    monkeypatch.setattr(experiment, "OTHER_CNN", cnn)
    monkeypatch.setattr(experiment, "MLP", small.student)
    config = replace(SMALL, settings=("digits-500",), epochs=1)
    records = EXPERIMENT.records(config, [0], Run(tmp_path))
    methods = {r.method for r in records if r.setting == "digits-500"}
    assert methods == {"teacher", *small.methods}
    of_exits = {r.metric for r in records if r.metric.startswith("exit")}
    assert of_exits == {f"exit{i}_accuracy" for i in range(1, 5)}
    assert {r.method for r in records if r.setting == "cka"} == {
        "homogeneous",
        "heterogeneous",
    }
    assert all(-1e-4 < r.value < 1 + 1e-4 for r in records if "cka" in r.metric)


def test_a_teacher_that_is_not_there_is_asked_for(tmp_path):
    config = replace(FULL, teachers=str(tmp_path))
    images = SETTINGS["digits-500"].load()
    with pytest.raises(FileNotFoundError, match="swin-tiny-cifar100_224 is missing"):
        experiment.taught(
            config, SETTINGS["swin_t-resnet18"], images, Run(tmp_path), seed=0
        )
