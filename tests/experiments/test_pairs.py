"""The experiments on pairs of networks: protocols, shapes at full scale, a tiny run."""

from dataclasses import replace

import jax
import pytest

from experiments.dhkd import experiment as dhkd
from experiments.pld import experiment as pld
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import methods, settings


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [pld, dhkd])
def test_full_scale_programs_have_shapes(experiment):
    programs = experiment.full_scale(experiment.PRESETS["paper"])
    assert tuple(programs) == experiment.PAPER_PAIRS
    # The first pair stands for all: tracing the deep ones takes long.
    program, batch = programs["resnet56-resnet20"]
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    _, metrics = jax.eval_shape(program.step, state, batch)
    assert metrics["loss"].shape == ()
    size = experiment.PRESETS["paper"].batch_size
    assert batch["image"].shape == (size, 32, 32, 3)


def test_protocol_of_pld():
    paper = pld.PRESETS["paper"]
    assert (paper.epochs, paper.batch_size, paper.optimizer) == (250, 128, "adamw")
    assert (paper.learning_rate, paper.weight_decay) == (1e-3, 0.5)
    assert pld.PAPER["resnet56-resnet20/pld"] == {"last_accuracy": 0.7028}


def test_protocol_of_dhkd():
    paper = dhkd.PRESETS["paper"]
    assert (paper.epochs, paper.batch_size, paper.optimizer) == (240, 64, "sgd")
    assert (paper.learning_rate, paper.weight_decay) == (0.05, 5e-4)
    assert (paper.milestones, paper.hidden) == ((150, 180, 210), 200)


def tiny(experiment, names, tmp_path, monkeypatch):
    """Run two epochs of some of the methods; compiling them all takes a minute."""
    every = experiment.methods

    def some(*arguments, **options):
        programs = every(*arguments, **options)
        return {name: programs[name] for name in names}

    monkeypatch.setattr(experiment, "methods", some)
    config = replace(
        experiment.PRESETS["small"],
        train_examples=(20,),
        batch_size=10,
        epochs=2,
        teacher_epochs=1,
        evaluate_every=1,
    )
    return experiment.run(config, (0,), Run(tmp_path))


@pytest.mark.slow
def test_a_tiny_run_of_pld(tmp_path, monkeypatch):
    records = tiny(pld, ("pld", "listmle"), tmp_path, monkeypatch)
    assert settings(records) == ["20 images"]
    assert methods(records, "20 images") == ["teacher", "pld", "listmle"]


@pytest.mark.slow
def test_a_tiny_run_of_dhkd_records_the_gradients_apart(tmp_path, monkeypatch):
    names = "one_head", "dhkd", "dhkd_aligned"
    records = tiny(dhkd, names, tmp_path, monkeypatch)
    assert settings(records) == ["20 images", "gradients, 20 images"]
    rows = methods(records, "gradients, 20 images")
    assert rows == [f"{name} {part}" for name in names[:2] for part in dhkd.PARTS]
    cosines = [r.value for r in records if r.metric == "gradient_cosine"]
    assert all(-1 <= value <= 1 for value in cosines)
    # Two heads share no classifier: the second loss has no gradient there.
    assert [r.value for r in records if r.method == "dhkd classifier"] == [0.0]


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'adma': did you mean 'ada"):
        replace(pld.PRESETS["small"], optimizer="adma").make_optimizer(1.0, 1)
