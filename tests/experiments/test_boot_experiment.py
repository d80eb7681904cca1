"""BOOT's experiment: exact teachers, the protocol, full-scale shapes, a short run."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments.boot.analytic import ABLATIONS, late_decay, mixture, ring
from experiments.boot.experiment import EXPERIMENT, full_scale
from experiments.common.configs import NetworkConfig
from jaxkd.papers.boot import boot
from jaxkd.reporting.run import Run

PRESETS = EXPERIMENT.presets
UNET = {"multipliers": (1,), "attention": ()}
SHAPE = {"image_size": 8, "channels_in": 1, "blocks": 1, "channels": 4}
TINY = replace(
    PRESETS["small"],
    settings=("mixture", "images"),
    mixture_steps=2,
    analytic_samples=20,
    unet=NetworkConfig("unet", {**SHAPE, **UNET, "groups": 2, "head_channels": 4}),
    teacher=replace(PRESETS["small"].teacher, steps=2),
    student=replace(PRESETS["small"].student, steps=2),
    warmup=1,
    sampler_steps=(1, 2),
    samples=30,
    student_seeds=1,
    classifier_epochs=1,
)


def test_the_mixture_s_denoiser_is_bayes_rule():
    rng = np.random.default_rng(0)
    centres, width = rng.normal(size=(5, 3)).astype("f4"), 0.2
    noisy = rng.normal(size=(4, 3)).astype("f4")
    time = np.array([0.05, 0.3, 0.7, 0.98])
    network = mixture(centres, width)
    inputs = {"image": jnp.asarray(noisy), "time": jnp.asarray(time, jnp.float32)}
    found = network.apply(network.init(jax.random.key(0)), inputs)[0].logits
    for x, t, signal in zip(noisy.astype(float), time, found, strict=True):
        alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
        variance = (alpha * width) ** 2 + sigma**2
        square = np.sum((x - alpha * centres) ** 2, axis=1)
        weight = np.exp(-(square - square.min()) / (2 * variance))
        # Each normal's own estimate, by how likely the noisy value is its.
        each = centres + alpha * width**2 / variance * (x - alpha * centres)
        expected = weight @ each / weight.sum()
        np.testing.assert_allclose(signal, expected, rtol=1e-4, atol=1e-5)


def test_the_ring_and_the_rate():
    data = ring().draw(4000, seed=0)
    np.testing.assert_allclose(np.linalg.norm(data, axis=1).mean(), 1, atol=0.01)
    np.testing.assert_allclose(np.mean(data, axis=0), 0, atol=0.05)
    rate = late_decay(0.1, steps=100, warmup=10)
    found = [float(rate(step)) for step in (0, 5, 10, 69, 85, 100)]
    np.testing.assert_allclose(found, [0, 0.05, 0.1, 0.1, 0.05, 0], atol=1e-6)
    assert late_decay(0.1, steps=100)(0) == np.float32(0.1)


@pytest.mark.slow
def test_full_scale_steps_keep_their_state():
    # With fewer layers: `test_diffusion_models.py` counts the whole network's.
    few = NetworkConfig("unet", {"blocks": 1, **UNET})
    config = replace(PRESETS["paper"], unet=few)
    programs = full_scale(config)
    assert sorted(programs) == ["student", "teacher"]
    for name, (program, batch) in programs.items():
        assert {x.shape[0] % 128 for x in batch.values()} == {0}
        state = jax.eval_shape(program.init, jax.random.key(0), batch)
        params = jax.tree.leaves(state.average["params"])
        assert {x.dtype for x in params} == {np.dtype("float32")}
        after, metrics = jax.eval_shape(program.step, state, batch)
        assert metrics["loss"].shape == ()
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert (state.program.teacher is None) == (name == "teacher")


def test_every_ablation_is_a_program():
    for arguments in ABLATIONS.values():
        network = mixture(ring().centres, 0.05)
        boot(network, network, optax.sgd(0.1), (2,), times=(0.002, 0.99), **arguments)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boot")
    # A dozen programs that run for a moment: compiling them is what takes long.
    jax.config.update("jax_disable_most_optimizations", True)
    yield folder, EXPERIMENT.records(TINY, [0], Run(folder))
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_a_short_run_has_records_of_every_method(records):
    folder, found = records
    metrics = {}
    for record in found:
        metrics.setdefault((record.setting, record.method), set()).add(record.metric)
        assert np.isfinite(record.value)
    distances = {"sliced_wasserstein", "mmd", "confidence"}
    for method in ("data", "ddim200"):
        assert metrics["digits mixture", method] == distances
    for method in ("ddim1", "ddim2", "ddim4", "boot"):
        assert metrics["digits mixture", method] == {*distances, "teacher_mse"}
    images = {"frechet", "confidence", "condition_accuracy", "speedup", "milliseconds"}
    assert metrics["digits", "boot"] == {*images, "teacher_mse"}
    assert metrics["digits", "ddim2"] == images
    assert {m for s, m in metrics if s == "digits"} == {
        "data",
        "ddim1",
        "ddim2",
        "boot",
    }
    (speedup,) = [
        r.value for r in found if (r.method, r.metric) == ("ddim2", "speedup")
    ]
    assert speedup == 1
    # The student's error at ten times, from the start of the trajectory to its end.
    assert {len(r.curve) for r in found if r.curve} == {10}
    with Image.open(folder / "samples.png") as picture:
        assert picture.size[1] > 4 * 8 * 4


@pytest.mark.slow
def test_finished_parts_are_not_done_again(records):
    folder, found = records
    mixture_only = replace(TINY, settings=("mixture",))
    again = EXPERIMENT.records(mixture_only, [0], Run(folder))
    assert again == [r for r in found if r.setting == "digits mixture"]
