"""Steps compiled for TPU slices that are not here, and what is refused."""

import io
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from rich.console import Console

import jaxkd
from jaxkd import Network, methods, models
from jaxkd.reporting.plans import (
    HEADER,
    plan_markdown,
    print_plans,
    read_plans,
    write_plans,
)
from jaxkd.training import DoesNotFit, MeshShape, StepPlan, make_mesh, plan_step
from jaxkd.training.ahead import compile_for, lower_for_gpu, slice_devices

PLAN = StepPlan(
    topology="v5e:2x4",
    chips=8,
    mesh={"data": 2, "fsdp": 4, "tensor": 1},
    arguments=2**30,
    temporaries=2**31,
    code=2**30,
    flops=1.97e12,
    bytes_accessed=8.19e9,
    collectives={"all-gather": 1e9, "all-reduce": 2e9},
    seconds=1.0,
)


def batch(size):
    return {
        "image": jax.ShapeDtypeStruct((size, 8, 8, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


def kd_program(width=256):
    network = models.mlp(features=64, widths=(width,))
    return jaxkd.distill(network, network, methods.kd(), optax.adam(1e-3))


@pytest.fixture(scope="module", autouse=True)
def libtpu():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")


@pytest.mark.slow
def test_a_step_for_eight_chips():
    plan = plan_step(kd_program(), batch(1024), "v5e:2x4", "fsdp")
    assert (plan.chips, plan.mesh["fsdp"]) == (8, 8)
    # Forward of the teacher, forward and weights' backward of the student, and the
    # student's last layer backward to its input: a chip's share of 1,024 examples.
    layers = 64 * 256 + 256 * 10
    least = 2 * (1024 // 8) * (3 * layers + 256 * 10)
    assert least <= plan.flops < 1.3 * least
    # Student, teacher and two moments, float32; the wide kernel is split eightfold.
    state = 4 * 4 * 64 * 256 / 8
    assert state < plan.arguments < 40 * state
    assert 0 < plan.needed < plan.memory == 16 * 2**30
    assert set(plan.collectives) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert min(plan.bounds.values()) > 0


def test_slices_that_a_data_centre_joins():
    mesh = make_mesh(MeshShape(dcn=2, fsdp=8), slice_devices("2xv5e:2x4"))
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    plan = plan_step(kd_program(), batch(1024), "2xv5e:2x4", MeshShape(dcn=2, fsdp=8))
    assert plan.chips == 16
    with pytest.raises(ValueError, match="is for 1 slices, but the devices are of 2"):
        make_mesh("fsdp", slice_devices("2xv5e:2x4"))


def test_a_batch_that_cannot_be_split_is_copied():
    plan = plan_step(kd_program(), batch(7), "v5e:2x4")
    assert plan.flops > 2 * 7 * 3 * 64 * 256


def test_what_does_not_fit_says_so():
    def apply(params, inputs):
        x = inputs.reshape(len(inputs), -1) @ params["w"]
        return jnp.tanh(x) @ params["v"]

    def init(key):
        return {"w": jnp.zeros((64, 2**21)), "v": jnp.zeros((2**21, 10))}

    network = Network.from_apply(init, apply)
    program = jaxkd.distill(network, None, methods.cross_entropy(), optax.sgd(0.1))
    with pytest.raises(DoesNotFit, match="does not fit a chip of v5e:2x2") as found:
        plan_step(program, batch(2**15), "v5e:2x2")
    # The first layer's activations, a fourth of the examples on each chip.
    assert re.search(r"64.00 GiB \w+\[8192,2097152\] .*(tanh|dot)", str(found.value))


def test_unknown_slices_are_refused():
    with pytest.raises(ValueError, match="unknown chip 'v5': did you mean 'v5"):
        slice_devices("v5:2x4")
    for topology in ("v5e:0x0", "v5p:2x0x2", "0xv5e:2x2", "v5e:99999x99999"):
        with pytest.raises(ValueError, match=f"'{topology}' is of .* chips: name a"):
            slice_devices(topology)
    with pytest.raises(ValueError, match="topology 'v5e:3x5x7' is no slice"):
        slice_devices("v5e:3x5x7")
    with pytest.raises(ValueError, match="unknown mesh 'dat': did you mean 'data'"):
        plan_step(kd_program(), batch(8), "v5e:2x4", "dat")


def test_figures_of_a_plan():
    assert PLAN.memory == 16 * 2**30
    assert PLAN.needed == 2**32
    # Both roofs at 10 ms.
    assert PLAN.bounds == pytest.approx(
        {"compute": 0.01, "memory": 0.01, "network": 0.015}
    )


def test_plans_are_written_read_and_shown(tmp_path):
    file = tmp_path / "results" / "compiled.json"
    write_plans(file, {"a pair": PLAN})
    assert read_plans(file) == {"a pair": PLAN}
    header, _, row = plan_markdown({"a pair": PLAN}).splitlines()
    assert header == f"| {' | '.join(HEADER)} |"
    assert row == (
        "| a pair | v5e:2x4, data 2 x fsdp 4 | 1,024.0 MiB | 2,048.0 MiB | 25.0 % "
        "| 1.97 | 8.19 | 3 | 15 | network |"
    )
    # At 80 columns no figure is cut or broken; on a wide terminal it is one table.
    for width, lines in ((80, len(HEADER) + 1), (200, 2)):
        console = Console(width=width, record=True, file=io.StringIO())
        print_plans(console, {"a pair": PLAN})
        *printed, sent = console.export_text().splitlines()
        assert len(printed) == lines
        assert max(map(len, printed)) <= width
        assert all(any(n in line for line in printed) for n in row[2:-2].split(" | "))
        assert sent.startswith("a pair: code")
    file.write_text('{"a pair": {"topology": "v5e:2x4"}}')
    with pytest.raises(ValueError, match="write it again with `jaxkd compile`"):
        read_plans(file)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_function_for_one_chip(topology):
    square = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    compiled = compile_for(topology, jnp.dot, square, square)
    cost: Any = compiled.cost_analysis()
    assert cost["flops"] == pytest.approx(2 * 256**3, rel=0.01)


def test_a_function_for_a_gpu():
    x = jax.ShapeDtypeStruct((64,), jnp.float32)

    def double(x):
        def kernel(x_ref, y_ref):
            y_ref[...] = x_ref[...] * 2

        parameters = plgpu.CompilerParams()
        return pl.pallas_call(kernel, jax.typeof(x), compiler_params=parameters)(x)

    assert "triton" in lower_for_gpu(double, x)
