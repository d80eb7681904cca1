"""Bilevel training: the gradient of the outer level, and what each level may touch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import call

from jaxkd import data, methods, models, training
from jaxkd.methods import cross_entropy, tgeokd
from jaxkd.programs import bilevel, distill, look_ahead_gradient
from jaxkd.types import Outputs

CLASSES = 3
AVERAGE = jax.nn.softmax(jnp.eye(CLASSES))
STUDENT = models.mlp(features=16, widths=(8,), classes=CLASSES)
INNER, OUTER = tgeokd(AVERAGE, 2.0, hidden=(4,)), cross_entropy()


@pytest.fixture(scope="module")
def batch(source):
    held_out = {k: v for k, v in source.take(np.arange(8, 16)).items() if k != "index"}
    return jax.device_put({**source.take(np.arange(8)), "validation": held_out})


def program(outer_optimizer=None, student=STUDENT, look_ahead=0.1, **changes):
    return bilevel(
        student,
        student,
        INNER,
        OUTER,
        optax.adam(1e-2),
        optax.sgd(1.0) if outer_optimizer is None else outer_optimizer,
        look_ahead=look_ahead,
        **changes,
    )


def started(found, batch, dtype="float32"):
    state = jax.jit(found.init)(jax.random.key(0), batch)
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )


def largest_change(a, b):
    return max(
        float(jnp.abs(x - y).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_gradient_of_a_quadratic_is_its_closed_form(x64):
    rng = np.random.default_rng(0)
    curve, target, theta = rng.normal(size=(4, 4)), rng.normal(size=4), np.ones(4)
    omega = rng.normal(size=4)

    def inner(theta, omega):  # its gradient is Cθ·Σω² + ω
        return 0.5 * theta @ curve @ curve.T @ theta * (omega**2).sum() + theta @ omega

    def outer(theta):
        return 0.5 * ((theta - target) ** 2).sum()

    value, gradient = look_ahead_gradient(inner, outer, theta, omega, 0.3)
    pull = curve @ curve.T @ theta
    ahead = theta - 0.3 * (pull * (omega**2).sum() + omega)
    error = ahead - target
    np.testing.assert_allclose(value, 0.5 * (error**2).sum(), rtol=1e-12)
    expected = -0.3 * (2 * omega * (pull @ error) + error)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


@pytest.mark.slow
def test_the_controllers_gradient_is_not_zero_and_finite_differences_agree(x64, batch):
    batch = jax.tree.map(
        lambda x: x.astype("f8") if x.dtype == jnp.float32 else x, batch
    )
    found = program(look_ahead=0.5)
    state = started(found, batch, "float64")
    omega = state.method["params"]
    moved, metrics = jax.jit(found.step)(state, batch)
    # Gradient descent with rate 1 moves by the gradient.
    gradient = jax.tree.map(lambda a, b: a - b, omega, moved.method["params"])
    assert largest_change(omega, moved.method["params"]) > 1e-4

    def logits(params, part):
        variables = {**state.student, "params": params}
        return STUDENT.apply(variables, part["image"])[0]

    teacher = STUDENT.apply(state.teacher, batch["image"])[0]

    @jax.jit
    def validation_loss(omega):
        def training_loss(params):
            variables = {"params": omega, "state": {}}
            student = Outputs(logits(params, batch).logits)
            return call(INNER, variables, student, teacher, batch)[0]

        slope = jax.grad(training_loss)(state.student["params"])
        ahead = jax.tree.map(lambda p, g: p - 0.5 * g, state.student["params"], slope)
        log_p = jax.nn.log_softmax(logits(ahead, batch["validation"]).logits)
        return -log_p[jnp.arange(8), batch["validation"]["label"]].mean()

    np.testing.assert_allclose(
        metrics["validation_loss"], validation_loss(omega), rtol=1e-12
    )
    for seed in range(3):
        rng = np.random.default_rng(seed)
        way = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape), omega)

        def shifted(h, way=way):
            return validation_loss(jax.tree.map(lambda x, d: x + h * d, omega, way))

        expected = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        np.testing.assert_allclose(
            optax.tree.vdot(gradient, way), expected, rtol=1e-5, atol=1e-10
        )


@pytest.mark.slow
def test_a_frozen_outer_level_is_distillation_and_blind_to_validation(batch):
    found = program(optax.set_to_zero())
    state = started(found, batch)
    step = jax.jit(found.step)
    moved, metrics = step(state, batch)
    other = {**batch, "validation": jax.tree.map(lambda x: x[::-1] * 0, batch)}
    del other["validation"]["index"], other["validation"]["validation"]
    unmoved, _ = step(state, other)
    assert largest_change(state.method["params"], moved.method["params"]) == 0
    assert largest_change(moved.student, unmoved.student) == 0
    assert largest_change(moved.student, state.student) > 0
    plain = distill(STUDENT, STUDENT, INNER, optax.adam(1e-2))
    trained = {"student": state.student["params"], "method": state.method["params"]}
    alone = dataclasses.replace(state, opt_state=optax.adam(1e-2).init(trained))
    expected, plain_metrics = jax.jit(plain.step)(
        alone, {k: v for k, v in batch.items() if k != "validation"}
    )
    np.testing.assert_allclose(metrics["loss"], plain_metrics["loss"], rtol=1e-6)
    assert largest_change(moved.student, expected.student) < 1e-6
    assert largest_change(state.method["params"], expected.method["params"]) > 0


@pytest.mark.slow
def test_batchnorm_is_frozen_in_the_look_ahead_and_masks_count(batch):
    student = models.cnn(channels=(2,), classes=CLASSES)
    found = program(student=student)
    step = jax.jit(found.step)
    masks = {"mask": jnp.ones(8).at[-1].set(0)}
    batch = {**batch, **masks, "validation": {**batch["validation"], **masks}}
    spoiled = dict(batch)
    spoiled["validation"] = {
        **batch["validation"],
        "image": batch["validation"]["image"].at[-1].set(9),
    }
    state = started(found, batch)
    a, metrics_a = step(state, batch)
    b, metrics_b = step(state, spoiled)
    # Batch statistics would mix the masked image into the others' outputs.
    assert metrics_a["validation_loss"] == metrics_b["validation_loss"]
    assert largest_change(a.method, b.method) == 0
    # The running averages follow the one real step, as in distillation.
    plain = distill(student, None, cross_entropy(), optax.adam(1e-2))
    kept = dataclasses.replace(started(plain, batch), student=state.student)
    expected, _ = jax.jit(plain.step)(kept, batch)
    assert largest_change(a.student["stats"], expected.student["stats"]) < 1e-6
    assert largest_change(a.student["stats"], state.student["stats"]) > 0


@pytest.mark.slow
def test_in_the_loop_every_second_step_moves_omega_and_a_run_resumes(source, tmp_path):
    found = program(optax.adam(1e-2), every=2)

    def fit(steps, folder):
        batches = data.with_validation(
            data.batches(source, 4, epochs=2), source, 4, seed=1
        )
        with training.Checkpoints(folder) as checkpoints:
            return training.fit(
                found,
                batches,
                key=jax.random.key(0),
                steps=steps,
                evaluate=lambda s: {"omega": optax.tree.norm(s.method["params"])},
                evaluate_every=1,
                checkpoints=checkpoints,
            )

    whole, history = fit(6, tmp_path / "whole")
    fit(3, tmp_path / "parts")
    resumed, _ = fit(6, tmp_path / "parts")
    whole, resumed = (dataclasses.replace(s, key=0) for s in (whole, resumed))
    assert largest_change(whole, resumed) == 0
    moved = np.diff([entry["omega"] for entry in history]) != 0
    assert moved.tolist() == [False, True, False, True, False]
    assert all(0 < entry["train_alpha"] < 1 for entry in history)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"look_ahead must be above 0.* got 0 and 1"):
        program(look_ahead=0)
    with pytest.raises(ValueError, match=r"every at least 1, got 0\.1 and 0"):
        program(every=0)


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        (INNER, cross_entropy(), r"no validation: make batches with data\."),
        (cross_entropy(), OUTER, "inner has no parameters"),
        (INNER, methods.ctkd(lambda step: -1.0), "outer has parameters or state"),
    ],
)
def test_bad_objectives_and_batches_are_named(batch, inner, outer, message):
    found = bilevel(STUDENT, STUDENT, inner, outer, optax.sgd(1), optax.sgd(1))
    if "validation:" in message:
        batch = {k: v for k, v in batch.items() if k != "validation"}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(found.init, jax.random.key(0), batch)
