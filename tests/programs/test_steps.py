"""Moving averages, mixed precision and accumulated gradients, in whole steps."""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, methods, models
from jaxkd.data import batches
from jaxkd.programs import with_average
from jaxkd.training import Checkpoints, fit

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def program():
    student = models.cnn(1, (4,), 3)
    return distill(student, None, methods.cross_entropy(), optax.adam(0.1))


def test_the_average_follows_its_recursion(source, program):
    batch = source.take(np.arange(10))
    averaged = with_average(program, 0.75)
    state = jax.jit(averaged.init)(KEY, batch)
    step = jax.jit(averaged.step)
    expected = jax.tree.map(np.asarray, state.program.student)
    for _ in range(3):
        state, metrics = step(state, batch)
        expected = jax.tree.map(
            lambda old, new: 0.75 * old + 0.25 * np.asarray(new),
            expected,
            state.program.student,
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        state.average,
        expected,
    )
    assert "loss" in metrics
    # BatchNorm's averages are averaged along.
    assert state.average["stats"]["stages"]["0"]["norms"]["0"]["mean"].any()


def test_an_average_of_no_memory_is_the_value(source, program):
    averaged = with_average(program, 0.0, of=lambda state: state.step)
    state, _ = fit(averaged, batches(source, 5, epochs=1), key=KEY)
    assert state.average == state.program.step == 4


@pytest.mark.slow
def test_training_and_resuming_with_an_average(source, program, tmp_path):
    data = batches(source, 5, epochs=2)
    averaged = with_average(program, 0.9)
    alone, _ = fit(program, data, key=KEY)
    whole, _ = fit(averaged, data, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, alone.student, whole.program.student)
    with Checkpoints(tmp_path) as checkpoints:
        fit(averaged, data, key=KEY, steps=3, checkpoints=checkpoints)
        again, _ = fit(averaged, data, key=KEY, checkpoints=checkpoints)
    jax.tree.map(np.testing.assert_array_equal, again.average, whole.average)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_out_of_range_is_refused(program, decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {decay}"):
        with_average(program, decay)


@pytest.mark.slow
def test_a_student_computes_in_bf16_from_float32_parameters(source, program):
    batch = source.take(np.arange(20))
    low = models.cnn(1, (4,), 3).computing_in(jnp.bfloat16)
    mixed = distill(low, None, methods.cross_entropy(), optax.adam(0.1))
    states = [jax.jit(p.init)(KEY, batch) for p in (program, mixed)]
    jax.tree.map(
        np.testing.assert_array_equal,
        states[0].student["params"],
        states[1].student["params"],
    )
    for train in (False, True):
        outputs, after = low.apply(
            states[1].student, batch["image"], taps=("stage0",), train=train
        )
        assert outputs.logits.dtype == outputs.features["stage0"].dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    state, metrics = jax.jit(mixed.step)(states[1], batch)
    _, full = jax.jit(program.step)(states[0], batch)
    types = {leaf.dtype for leaf in jax.tree.leaves((state.student, state.opt_state))}
    assert types == {jnp.dtype("float32"), jnp.dtype("int32")}
    np.testing.assert_allclose(metrics["loss"], full["loss"], rtol=1e-2)
    np.testing.assert_allclose(metrics["grad_norm"], full["grad_norm"], rtol=3e-2)


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(source):
    """`optax.MultiSteps` around the optimizer, in a network without BatchNorm."""
    student, ce = models.mlp(16, (8,), 3), methods.cross_entropy()
    optimizer = optax.sgd(0.1, momentum=0.9)
    whole = distill(student, None, ce, optimizer)
    parts = distill(
        student, None, ce, optax.MultiSteps(optimizer, 4).gradient_transformation()
    )
    data = batches(source, 20, epochs=3)
    expected, _ = fit(whole, data, key=KEY)

    pieces = [
        {name: array[i : i + 5] for name, array in batch.items()}
        for batch in data
        for i in range(0, 20, 5)
    ]
    state, _ = fit(parts, grain.MapDataset.source(pieces).to_iter_dataset(), key=KEY)
    assert state.step == 12
    assert state.opt_state.gradient_step == 3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        state.student,
        expected.student,
    )
