"""BOOT and the denoising method: what is trained, drawn, masked and refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import Network, data, methods, programs, training
from jaxkd.evaluation.generation import ddim_sample
from jaxkd.losses.diffusion import vp_schedule
from jaxkd.models.diffusion.conditioning import INPUTS
from jaxkd.papers import boot as paper
from jaxkd.programs import Keys
from jaxkd.sharding.mesh import on_mesh

KEY = jax.random.key(0)
MEAN, WIDTH, DIM = 0.5, 0.3, 2


def normal_denoiser(classes=0):
    """Return the exact signal predictor of normal data; classes shift its mean."""

    def apply(params, inputs):
        level = vp_schedule(inputs["time"])
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        mean = params["mean"]
        if classes:
            mean = mean + inputs["condition"][:, None]
        gain = alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)
        return mean + gain * (inputs["image"] - alpha * mean)

    return Network.from_apply(
        lambda key: {"mean": jnp.full(DIM, MEAN)}, apply, reads=INPUTS
    )


def linear_student():
    """Return a student that is linear in the noise, as a normal's flow is."""

    def init(key):
        return {"scale": jnp.zeros((4, DIM)), "shift": jnp.zeros((4, DIM))}

    def apply(params, inputs):
        powers = inputs["time"][:, None] ** jnp.arange(4)
        return (powers @ params["scale"]) * inputs["image"] + powers @ params["shift"]

    return Network.from_apply(init, apply, reads=INPUTS)


def batch(size=8, **extra):
    return {"index": jnp.arange(size), **extra}


def boot(**arguments):
    arguments = {"delta": 0.1, "times": (0.01, 0.9), **arguments}
    return paper.boot(
        linear_student(), normal_denoiser(), optax.adam(0.02), (DIM,), **arguments
    )


@pytest.mark.slow
def test_the_student_learns_the_teachers_sampler_without_data():
    source = data.Conditions(6400)
    state, history = training.fit(
        boot(delta=0.05, weighting="none"),
        data.batches(source, 64, epochs=10),
        key=KEY,
        steps=1000,
    )
    noise = jax.random.normal(jax.random.key(1), (200, DIM))
    teacher = paper.denoiser(normal_denoiser(), state.teacher)
    target = ddim_sample(teacher, noise, np.linspace(0.9, 0.01, 200))
    sample = paper.denoiser(linear_student(), state.student)(noise, jnp.full(200, 0.01))
    one_step = teacher(noise, jnp.full(200, 0.9))
    error = jnp.mean((sample - target) ** 2)
    assert error < 0.2 * jnp.mean((one_step - target) ** 2)
    np.testing.assert_allclose(sample.mean(0), MEAN, atol=0.1)
    assert {"train_loss", "train_bootstrap", "train_boundary"} <= history[-1].keys()
    assert np.all(state.teacher["params"]["mean"] == MEAN)


@pytest.fixture(scope="module")
def stepped():
    program = boot()
    state = program.init(KEY, batch())
    return program, state, jax.jit(program.step)


def test_a_step_is_the_losses_of_what_it_draws(stepped):
    """The loss is computed again from the noise and times of each example's key."""
    _, state, step = stepped
    _, metrics = step(state, batch(5))
    key = Keys(state.key).at(0).noise
    losses = []
    for i in range(5):
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        noise = np.asarray(jax.random.normal(keys[0], (DIM,)), np.float64)
        start = np.asarray(jax.random.normal(keys[2], (DIM,)), np.float64)
        t = float(jax.random.uniform(keys[1], minval=0.11, maxval=0.9))
        # The student starts at 0, so a step from its signal is c times the teacher's.
        ratio = np.tan(np.pi * (t - 0.1) / 2) / np.tan(np.pi * t / 2)

        def signal(noisy, t):
            alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
            gain = alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)
            return MEAN + gain * (noisy - alpha * MEAN)

        target = (1 - ratio) * signal(np.sin(np.pi * t / 2) * noise, t)
        losses.append((np.mean(target**2) / 0.01, np.mean(signal(start, 0.9) ** 2)))
    expected = np.mean(losses, axis=0)
    np.testing.assert_allclose(metrics["bootstrap"], expected[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["boundary"], expected[1], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], expected.sum(), rtol=1e-4)


def test_masked_examples_have_no_influence_and_all_masked_is_zero(stepped):
    _, state, step = stepped
    mask = jnp.array([1.0] * 5 + [0.0] * 3)
    masked, metrics = step(state, batch(8, mask=mask))
    few, expected = step(state, batch(5))
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    chex.assert_trees_all_close(masked.student, few.student, rtol=1e-3, atol=1e-6)
    _, none = step(state, batch(8, mask=0 * mask))
    assert none["loss"] == 0
    assert none["grad_norm"] == 0


def test_every_step_draws_anew_and_the_seed_repeats(stepped):
    program, state, step = stepped
    once, first = step(state, batch())
    _, again = step(state, batch())
    assert first["loss"] == again["loss"]
    _, second = step(once.replace(student=state.student), batch())
    assert second["boundary"] != first["boundary"]
    _, other = step(program.init(jax.random.key(5), batch()), batch())
    assert other["boundary"] != first["boundary"]


def test_a_guided_signal_is_made_of_each_example_s_own_two():
    network = normal_denoiser(classes=2)
    given, none = jnp.array([0, 1, 1]), jnp.full(3, 2)
    noisy, time = jax.random.normal(KEY, (3, DIM)), jnp.array([0.1, 0.5, 0.9])

    def signal(condition, **arguments):
        denoise = paper.denoiser(
            network, network.init(KEY), condition=condition, **arguments
        )
        return denoise(noisy, time)

    with_condition, without = signal(given), signal(none)
    np.testing.assert_allclose(
        signal(given, guidance=3.0, no_condition=2),
        without + 3 * (with_condition - without),
        rtol=1e-5,
    )


def test_what_is_drawn_is_pinned_to_its_part_of_the_batch():
    """XLA split large networks by their weights instead, and sent the activations."""
    program, mesh = boot(), training.make_mesh("fsdp")
    step = jax.jit(on_mesh(program.step, mesh))
    text = step.lower(program.init(KEY, batch(8)), batch(8)).as_text()
    pinned = [line for line in text.splitlines() if "sharding_constraint" in line]
    for shape, arrays in (("8x2xf32", 2), ("<8xf32>", 1)):
        assert sum(shape in line and "fsdp" in line for line in pinned) == arrays


@pytest.mark.slow
def test_guidance_moves_the_target_away_from_no_condition():
    def run(**arguments):
        program = paper.boot(
            linear_student(),
            normal_denoiser(classes=2),
            optax.sgd(0.1),
            (DIM,),
            times=(0.0, 0.9),
            **arguments,
        )
        given = batch(4, condition=jnp.array([0, 1, 0, 1]))
        state, _ = program.step(program.init(KEY, given), given)
        return state.student["params"]["shift"].sum()

    # "No condition" is class 2, above both: guidance goes below the plain signal.
    assert run(guidance=3.0, no_condition=2) < run()


def test_a_student_starts_from_its_teacher_and_batchnorm_free_state_is_kept():
    network = normal_denoiser().with_variables(
        {"params": {"mean": jnp.array([1.0, 2.0])}, "stats": {}}
    )
    program = programs.with_average(
        paper.boot(network, network, optax.sgd(0.1), (DIM,)), 0.5
    )
    state = program.init(KEY, batch())
    np.testing.assert_array_equal(state.average["params"]["mean"], [1, 2])
    after, _ = jax.jit(program.step)(state, batch())
    old, new = (s.program.student["params"]["mean"] for s in (state, after))
    assert np.any(old != new)
    np.testing.assert_allclose(after.average["params"]["mean"], (old + new) / 2)


@pytest.mark.slow
def test_denoising_trains_the_exact_denoiser_s_mean():
    rng = np.random.default_rng(0)
    images = (1.2 + WIDTH * rng.normal(size=(640, DIM))).astype("f4")
    source = data.Source("normal", {"image": images}, 0)
    program = jaxkd.distill(
        normal_denoiser(), None, methods.denoising(), optax.adam(0.05)
    )
    state, history = training.fit(program, data.batches(source, 64, epochs=12), key=KEY)
    np.testing.assert_allclose(state.student["params"]["mean"], 1.2, atol=0.05)
    assert history[-1]["train_loss"] == history[-1]["train_denoising"]


@pytest.mark.slow
def test_a_condition_of_the_teachers_own_is_the_teachers():
    networks = linear_student(), normal_denoiser(classes=2)
    program = paper.boot(*networks, optax.sgd(0.1), (DIM,), times=(0.0, 0.9))
    step = jax.jit(program.step)

    def loss(**conditions):
        given = batch(4, **conditions)
        return float(step(program.init(KEY, given), given)[1]["loss"])

    one, two = jnp.ones(4, int), jnp.full(4, 2)
    assert loss(condition=one, teacher_condition=two) == pytest.approx(
        loss(condition=two), rel=1e-6
    )
    assert loss(condition=one) != pytest.approx(loss(condition=two), rel=0.1)


def test_denoising_prepares_noise_time_and_condition():
    method = methods.denoising(classes=3, condition_dropout=0.4)
    clean = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 2)), jnp.float32)
    given = {"image": clean, "label": jnp.ones(4000, int), "weight": jnp.ones(4000)}
    found = method.prepare(KEY, given)
    assert {"condition", "image", "time"} <= set(found)
    assert "label" not in found
    assert "weight" in found
    np.testing.assert_allclose(np.mean(found["condition"] == 3), 0.4, atol=0.03)
    assert set(np.unique(found["condition"])) == {1, 3}
    level = vp_schedule(found["time"])
    noise = (found["image"] - level.alpha[:, None] * clean) / level.sigma[:, None]
    late = found["time"] > 0.1
    np.testing.assert_allclose(noise[late].std(), 1, atol=0.05)
    assert abs(np.corrcoef(noise[late].ravel(), clean[late].ravel())[0, 1]) < 0.05
    np.testing.assert_allclose(
        np.quantile(found["time"], [0.1, 0.9]), [0.1, 0.9], atol=0.03
    )


def test_conditions_are_drawn_by_seed_and_counted():
    source = data.Conditions(40, classes=5)
    first, again = (list(data.batches(source, 8, epochs=3, seed=1)) for _ in range(2))
    assert len(first) == 15
    drawn = np.concatenate([b["condition"] for b in first])
    np.testing.assert_array_equal(
        drawn, np.concatenate([b["condition"] for b in again])
    )
    assert set(drawn) == set(range(5))
    other = next(iter(data.batches(source, 8, epochs=1, seed=2)))["condition"]
    assert np.any(other != first[0]["condition"])
    in_turn = source.take(np.arange(7))["condition"]
    np.testing.assert_array_equal(in_turn, [0, 1, 2, 3, 4, 0, 1])
    assert list(data.Conditions(3).take(np.arange(3))) == ["index"]
    assert data.Conditions(3).fingerprint != data.Conditions(4).fingerprint
    with pytest.raises(ValueError, match="at least 1"):
        data.Conditions(0)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: boot(delta=0.9), "times must be an interval"),
        (lambda: boot(times=(-0.1, 0.9)), "times must be an interval"),
        (lambda: boot(times=(0.0, 1.1)), "times must be an interval"),
        (lambda: boot(boundary=-1.0), "boundary must be at least 0"),
        (lambda: boot(order=3), "order must be 1"),
        (lambda: boot(weighting="inv"), "unknown weighting"),
        (lambda: boot(prediction="y"), "unknown prediction"),
        (lambda: boot().init(KEY, {"index": jnp.zeros(0)}), "is empty"),
        (
            lambda: boot().step(boot().init(KEY, batch()), {"label": jnp.zeros(2)}),
            r"\['label'\], but boot\(\) needs index",
        ),
        (
            lambda: paper.denoiser(normal_denoiser(), {}, guidance=2.0),
            "give condition and no_condition",
        ),
        (
            lambda: paper.denoiser(normal_denoiser(), {}, prediction="e"),
            "unknown prediction",
        ),
        (lambda: methods.denoising("z"), "unknown prediction"),
        (lambda: methods.denoising(condition_dropout=1.0), r"\[0, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
