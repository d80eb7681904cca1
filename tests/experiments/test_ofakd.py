"""OFA-KD's experiment: the paper's protocol, and a run of seconds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ofakd import experiment
from experiments.ofakd.config import PAPER, PRESETS, SETTINGS, TWELVE, Recipe
from jaxkd.data import Dataset, Source
from jaxkd.reporting.experiment import Run

# A student with maps, one with tokens of several grids, and one that is averaged.
FULL = ("vit_s-mobilenet_v2", "convnext_t-swin_p", "imagenet/swin_t-resmlp_s12")


def test_the_presets_are_the_papers_protocol():
    assert len(PRESETS["paper"].settings) == 6
    assert TWELVE == ("block1", "block3", "block9", "block11")
    cnn = SETTINGS["swin_t-resnet18"]
    assert (cnn.recipe.epochs, cnn.recipe.batch_size, cnn.side) == (300, 1024, 224)
    assert (cnn.recipe.optimizer, cnn.recipe.weight_decay) == ("sgd", 2e-3)
    assert cnn.gamma == 1.0
    vit = SETTINGS["convnext_t-deit_t"].recipe
    assert (vit.optimizer, vit.clip, vit.mixup, vit.cutmix) == ("adamw", 5, 0.8, 1)
    imagenet = SETTINGS["imagenet/deit_t-resnet18"]
    assert (imagenet.recipe.epochs, imagenet.gamma) == (100, 1.5)
    assert SETTINGS["imagenet/swin_t-resmlp_s12"].recipe.average == 0.99996
    assert SETTINGS["vit_s-mobilenet_v2"].taps[-1] == "final"
    for key in PAPER:
        setting, _, method = key.rpartition("/")
        assert method in SETTINGS[setting].methods
    assert PAPER["convnext_t-resmlp_s12/ofakd"] == {"best_accuracy": 0.8122}


def rates(recipe, epochs):
    """Return the rate of each epoch, from what the optimizer does to a gradient."""
    optimizer = experiment.make_optimizer(replace(recipe, weight_decay=0.0), epochs)(
        epochs
    )
    params = {"bias": np.zeros(1, "f4")}
    state, found = optimizer.init(params), []
    step = jax.jit(lambda s: optimizer.update({"bias": jnp.ones(1)}, s, params))
    for _ in range(epochs):
        update, state = step(state)
        found.append(-float(update["bias"][0]))
    return np.array(found)


def test_the_rate_rises_and_falls_as_in_the_recipes():
    recipe = SETTINGS["convnext_t-deit_t"].recipe
    # Adam's first steps on a constant gradient are of the rate's length.
    found = rates(recipe, 300)
    assert found[0] == pytest.approx(5e-7, rel=1e-3)
    assert found[10] == pytest.approx((5e-7 + 5e-4) / 2, rel=1e-2)
    cosine = 1e-5 + (5e-4 - 1e-5) * (1 + np.cos(np.pi * np.arange(300) / 300)) / 2
    np.testing.assert_allclose(found[20:], cosine[20:], rtol=1e-2)
    steps = Recipe(8, 4, "sgd", 1.0, milestones=(4, 6), warmup_epochs=2)
    ratio = rates(steps, 8)[1:] / rates(replace(steps, milestones=()), 8)[1:]
    assert ratio[0] == pytest.approx(1)


def test_biases_and_norms_do_not_decay():
    recipe = Recipe(1, 4, "sgd", 1.0, weight_decay=0.5)
    optimizer = experiment.make_optimizer(recipe, 1)(1)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    update, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert np.all(np.asarray(update["kernel"]) < 0)
    assert not np.any(update["scale"])


def test_mixup_and_cutmix_alternate():
    task = experiment.make_task(
        PRESETS["paper"], "x", digits(), SETTINGS["convnext_t-deit_t"].recipe
    )
    batch = {
        "image": np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("f4"),
        "label": np.arange(8, dtype="i4"),
    }
    found = set()
    for seed in range(8):
        mixed = task.transform(batch, np.random.default_rng(seed))
        # Pasted rectangles keep pixels that are the first image's own.
        found.add(bool(np.any(mixed["image"] == batch["image"])))
        np.testing.assert_allclose(mixed["label"].sum(-1), 1, rtol=1e-5)
    assert found == {True, False}
    assert task.transform(batch, None)["label"].ndim == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_the_full_scale_programs_train(name):
    preset = "imagenet" if name in PRESETS["imagenet"].settings else "paper"
    config = replace(PRESETS[preset], settings=(name,))
    ((program, batch),) = experiment.full_scale(config).values()
    assert batch["image"].shape[0] % 8 == 0
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(program.step, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {"loss", "ofa_logits", "ofa_exits", "cross_entropy"} <= metrics.keys()


def digits():
    rng = np.random.default_rng(0)

    def part(name, examples):
        arrays = {
            "image": rng.random((examples, 8, 8, 1)).astype("f4"),
            "label": (np.arange(examples) % 10).astype("i4"),
        }
        return Source(name, arrays, 10)

    return Dataset(part("toy/train", 60), part("toy/test", 30))


@pytest.mark.slow
def test_a_shrunk_run_has_records_of_all_methods(monkeypatch, tmp_path):
    setting = SETTINGS["digits-500"]
    recipe = replace(setting.recipe, batch_size=20)
    small = replace(
        setting,
        teacher=("mlp", {"widths": (4,)}),
        student=("mlp", {"widths": (4, 4, 4, 4)}),
        recipe=recipe,
        teacher_recipe=recipe,
        train_examples=40,
    )
    monkeypatch.setitem(experiment.SETTINGS, "digits-500", small)
    cnn = ("cnn", {"channels": (2, 2, 2, 2)})
    monkeypatch.setattr(experiment, "CNN", cnn)
    monkeypatch.setattr(experiment, "OTHER_CNN", cnn)
    monkeypatch.setattr(experiment, "MLP", small.student)
    monkeypatch.setattr(experiment.data, "load", lambda name: digits())
    config = replace(PRESETS["small"], settings=("digits-500",), epochs=1)
    records = experiment.run(config, [0], Run(tmp_path))
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
    config = replace(PRESETS["paper"], teachers=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="swin-tiny-cifar100 is missing"):
        experiment.teacher_variables(
            config, SETTINGS["swin_t-resnet18"], digits(), None, Run(tmp_path)
        )
