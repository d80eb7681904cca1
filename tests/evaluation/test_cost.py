"""Costs: parameters and FLOPs against closed forms, and memory against shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import combine, distill, methods, models
from jaxkd.evaluation.cost import (
    compiled_cost,
    forward_cost,
    parameter_count,
    step_cost,
)


def test_parameter_count_makes_no_weights():
    assert parameter_count(models.mlp(6, (5, 4), 3)) == 7 * 5 + 6 * 4 + 5 * 3
    # 87 million parameters, counted in no time and no memory.
    assert parameter_count(models.vit("base")) == 86_567_656


def test_a_products_flops_and_bytes():
    x, y = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 32), (32, 128)))
    cost = compiled_cost(jnp.matmul, x, y)
    assert cost.flops == pytest.approx(2 * 64 * 32 * 128, rel=0.01)
    assert cost.arguments == 4 * (64 * 32 + 32 * 128)
    assert cost.outputs == 4 * 64 * 128
    assert cost.bytes_accessed >= cost.arguments + cost.outputs


def test_a_donated_argument_is_no_new_output():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    assert compiled_cost(lambda x: x + 1, x).outputs == 4096
    assert compiled_cost(lambda x: x + 1, x, donate=(0,)).outputs == 0


def test_forward_cost_counts_the_layers():
    cost = forward_cost(models.mlp(64, (256,), 10), (32, 64))
    assert cost.flops == pytest.approx(2 * 32 * (64 * 256 + 256 * 10), rel=0.05)


def test_a_distillation_step_costs_teacher_forward_and_thrice_the_student():
    student, teacher = models.mlp(64, (128,), 10), models.mlp(64, (512, 512), 10)
    method = combine((0.1, methods.cross_entropy()), (0.9, methods.kd()))
    program = distill(student, teacher, method, optax.sgd(0.1))
    batch = {"image": np.ones((256, 64), "f4"), "label": np.zeros(256, "i4")}
    parts = [forward_cost(network, (256, 64)).flops for network in (teacher, student)]
    # The student's first layer has no gradient by its input.
    share = step_cost(program, batch).flops / (parts[0] + 3 * parts[1])
    assert 0.9 < share <= 1.05
