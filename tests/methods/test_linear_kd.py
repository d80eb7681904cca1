"""Distillation by hidden states and heads is that by logits, on any mesh."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import combine, distill, methods, models
from jaxkd.kernels.linear_distill import jensen_shannon
from jaxkd.sharding.mesh import on_mesh, shard_batch, state_sharding
from jaxkd.training import MeshShape, make_mesh

SIZES = {"vocabulary": 32, "layers": 1, "heads": 2, "hidden": 32}
IDS = jax.random.randint(jax.random.key(0), (4, 9), 0, 32)
BATCH = {
    "input_ids": IDS[:, :-1],
    "label": IDS[:, 1:],
    "mask": (jnp.arange(8) < jnp.array([[8], [5], [1], [0]])).astype(jnp.float32),
}


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def networks():
    student, teacher = (
        models.llama(width=width, **SIZES).astype(jnp.float64) for width in (16, 32)
    )
    return student, teacher.with_variables(jax.jit(teacher.init)(jax.random.key(5)))


def trained(networks, method, mesh=None):
    """Return the loss and the weights after one step of plain descent."""
    program = distill(*networks, method, optax.sgd(1.0))
    batch = BATCH
    if mesh is None:
        state = jax.jit(program.init)(jax.random.key(1), batch)
        state, metrics = jax.jit(program.step)(state, batch)
        return float(metrics["loss"]), jax.device_get(state.student["params"])
    init, step = on_mesh(program.init, mesh), on_mesh(program.step, mesh)
    batch = shard_batch(batch, mesh)
    shapes = jax.eval_shape(init, jax.random.key(1), batch)
    places = state_sharding(shapes, mesh, program.axes, min_size=1)
    state = jax.jit(init, out_shardings=places)(jax.random.key(1), batch)
    state, metrics = jax.jit(step)(state, batch)
    return float(metrics["loss"]), jax.device_get(state.student["params"])


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    chex.assert_trees_all_close(found[1], expected[1], rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module")
def one_device(networks):
    return trained(networks, methods.linear_kd(temperature=2.0, label_weight=0.5))


@pytest.mark.slow
def test_the_numbers_are_those_of_the_logits(networks, one_device):
    plain = combine((1.0, methods.kd(2.0)), (0.5, methods.cross_entropy()))
    assert_same(one_device, trained(networks, plain))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [MeshShape(data=2, tensor=2), MeshShape(fsdp=2, tensor=2)], ids=str
)
def test_every_mesh_gives_the_numbers_of_one_device(networks, one_device, shape):
    method = methods.linear_kd(temperature=2.0, label_weight=0.5)
    assert_same(trained(networks, method, make_mesh(shape)), one_device)


@pytest.mark.slow
def test_another_divergence_needs_no_labels(networks):
    method = methods.linear_kd(jensen_shannon(0.5))
    program = distill(*networks, method, optax.sgd(1.0))
    batch = {name: BATCH[name] for name in ("input_ids", "mask")}
    state = jax.jit(program.init)(jax.random.key(1), batch)
    _, metrics = jax.jit(program.step)(state, batch)
    assert 0 < float(metrics["loss"]) < np.log(2)


def test_labels_that_are_missing_are_asked_for(networks):
    program = distill(*networks, methods.linear_kd(label_weight=0.5), optax.sgd(1.0))
    with pytest.raises(ValueError, match=r"label_weight is 0.5, but the batch has no"):
        jax.eval_shape(
            lambda b: program.step(program.init(jax.random.key(0), b), b),
            {"input_ids": BATCH["input_ids"]},
        )
