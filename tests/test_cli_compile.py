"""`jaxkd compile`: what a slice needs, on paper and on the exit status."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxkd
from jaxkd import Network, cli, methods
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.plans import read_plans

pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")


@dataclass(frozen=True)
class Config:
    """The widths of a program each."""

    widths: tuple[int, ...]


def full_scale(config):
    def program(width):
        def init(key):
            return {"w": jnp.zeros((64, width)), "v": jnp.zeros((width, 10))}

        def apply(params, x):
            return jnp.tanh(x.reshape(len(x), -1) @ params["w"]) @ params["v"]

        network = Network.from_apply(init, apply)
        return jaxkd.distill(network, None, methods.cross_entropy(), optax.sgd(0.1))

    batch = {
        "image": jax.ShapeDtypeStruct((2**15, 8, 8, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((2**15,), jnp.int32),
    }
    return {f"width {width}": (program(width), batch) for width in config.widths}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    presets = {"paper": Config((128, 2**21)), "small": Config((128,))}
    experiment = Experiment(
        presets, full_scale=full_scale, topology="v5e:2x2", folder=tmp_path / "toy"
    )
    monkeypatch.setattr(cli, "load_experiment", lambda slug: experiment)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_program_that_does_not_fit_is_the_status(folder, capsys):
    assert cli.main(["compile", "toy"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "does not fit: a step does not fit a chip of v5e:2x2" in printed
    assert "The biggest buffers: 64.00 GiB" in printed
    assert "width 128: code" in printed
    # What fits has been written all the same.
    assert set(read_plans(folder / "runs" / "toy-compiled.json")) == {"width 128"}
    assert not (folder / "toy").exists()


@pytest.mark.slow
def test_one_program_on_another_slice(folder, capsys):
    arguments = ["compile", "toy", "--only", "width 128", "--topology", "2xv6e:2x2"]
    assert cli.main([*arguments, "--mesh", "data"]) == 1
    assert "is for 1 slices, but the devices are of 2" in capsys.readouterr().err
    arguments = ["compile", "toy", "--preset", "small", "--mesh", "fsdp"]
    assert cli.main([*arguments, "--commit-results"]) == 0
    plan = read_plans(folder / "toy" / "results" / "compiled.json")["width 128"]
    assert (plan.topology, plan.mesh["fsdp"]) == ("v5e:2x2", 4)
    assert cli.main(["compile", "toy", "--only", "width 3"]) == 1
    assert "unknown program of toy 'width 3'" in capsys.readouterr().err
