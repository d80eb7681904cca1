"""HARD: two players in one step, whose turn it is, what is kept and what refused."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Network, losses, models, training
from jaxkd.methods import combine, cross_entropy, kd
from jaxkd.papers import hard
from jaxkd.papers.hard import Augmented, Augmenter
from jaxkd.programs import Keys, with_average
from jaxkd.sharding.mesh import make_mesh, on_mesh, shard_batch

KEY, SIDE, CLASSES = jax.random.key(0), 6, 4
STUDENT = models.mlp(SIDE**2, (8,), CLASSES)
TEACHER = models.mlp(SIDE**2, (12,), CLASSES)
TEACHER = TEACHER.with_variables(
    jax.tree.map(lambda x: 2 * x, TEACHER.init(jax.random.key(7)))
)
SGD, KD = optax.sgd(0.1), kd(2.0)
BRIGHTER = Augmenter(
    lambda key, images: {"params": {"by": jnp.full((), 0.3)}, "frozen": {}},
    lambda variables, images, key: Augmented(
        images + variables["params"]["by"], images.mean((1, 2))
    ),
)
"""A user's own: one number, and no noise."""


def make_batch(examples=8):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.random((examples, SIDE, SIDE, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, CLASSES, examples)),
    }


def program(
    augmenter=BRIGHTER, moved: Any = SGD, method=KD, student=STUDENT, **options: Any
):
    return hard.hard(
        student, TEACHER, method, SGD, augmenter, moved, **{"replay": 0, **options}
    )


def run(made, batch, steps=1):
    """Return the first state, the last, and every step's metrics."""
    first = state = jax.jit(made.init)(KEY, batch)
    step, found = jax.jit(made.step), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        found.append(metrics)
    return first, state, found


def logits(network, variables, image):
    return network.apply(variables, image)[0].logits


def test_a_step_is_the_papers_two_losses():
    """Against gradients of the losses alone, taken by hand from the first state."""
    batch, lam = make_batch(), 0.25
    first, last, (metrics,) = run(program(label_weight=lam, cap=0.4), batch)
    teacher, x = first.distillation.teacher, batch["image"]

    def player(by):
        found, parts = losses.hard_augmenter_loss(
            logits(TEACHER, teacher, x),
            logits(TEACHER, teacher, x + by),
            logits(STUDENT, first.student, x + by),
            cap=0.4,
        )
        return found.mean(), parts

    (value, parts), slope = jax.jit(jax.value_and_grad(player, has_aux=True))(0.3)
    by = 0.3 - 0.1 * slope
    np.testing.assert_allclose(last.augmenter["params"]["by"], by, rtol=1e-5)
    np.testing.assert_allclose(metrics["augmenter_loss"], value, rtol=1e-5)
    for name, expected in parts.items():
        np.testing.assert_allclose(metrics[name], expected.mean(), rtol=1e-5)

    def student(params):
        held = {"params": params, "stats": {}}
        found, _ = losses.hard_student_loss(
            *(logits(STUDENT, held, x), logits(TEACHER, teacher, x)),
            *(logits(STUDENT, held, x + by), logits(TEACHER, teacher, x + by)),
            batch["label"],
            lam,
        )
        return found.mean()

    value, slopes = jax.jit(jax.value_and_grad(student))(first.student["params"])
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, first.student["params"], slopes)
    chex.assert_trees_all_close(last.student["params"], expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal(last.distillation.teacher, teacher)


@pytest.mark.slow
def test_accumulation_and_a_mesh_change_no_number():
    batch = {**make_batch(8), "weight": jnp.arange(8.0)}
    method = combine((0.3, cross_entropy()), (1.0, kd(2.0)))
    whole, parts = (program(method=method, accumulate=n) for n in (1, 2))
    state, mesh = jax.jit(whole.init)(KEY, batch), make_mesh("data")
    expected, metrics = jax.jit(whole.step)(state, batch)
    split = jax.jit(on_mesh(whole.step, mesh))(state, shard_batch(batch, mesh))
    for found, reported in (jax.jit(parts.step)(state, batch), split):
        chex.assert_trees_all_close(
            found.student, expected.student, rtol=1e-4, atol=1e-6
        )
        for name in set(metrics) - {"spread"}:  # of the examples of a part
            np.testing.assert_allclose(
                reported[name], metrics[name], rtol=1e-4, atol=1e-6
            )


def test_the_augmenter_finds_what_is_hard():
    """A student that stands still, and an augmenter that begins with the image."""
    nothing = {"params": {"by": jnp.zeros(())}, "frozen": {}}
    made = hard.hard(
        STUDENT,
        TEACHER,
        KD,
        optax.set_to_zero(),
        BRIGHTER._replace(init=lambda key, images: nothing),
        optax.adam(0.1),
        consistency=0.0,
        replay=0,
    )
    _, _, found = run(made, make_batch(16), 20)
    course = [float(metrics["disagreement"]) for metrics in found]
    assert course[0] == pytest.approx(float(found[0]["clean_kd"]), rel=1e-5)
    assert course[-1] > 1.08 * course[0]


def test_players_take_turns_by_the_disagreement():
    """From the student's phase, down below low, to the augmenter's, up above high."""
    assert [
        int(hard.phase_update(jnp.int32(phase), jnp.float32(level), 1.0, 2.0))
        for phase, level in [(0, 3), (0, 1.5), (0, 0.5), (1, 0.5), (1, 1.5), (1, 3)]
    ] == [0, 0, 1, 1, 1, 0]
    student = models.cnn(1, (4,), CLASSES)  # with BatchNorm
    batch, phases = make_batch(), []
    # Every level is between these: after the first step the augmenter's turn goes on.
    made = program(student=student, schedule="threshold", thresholds=(90.0, 99.0))
    state, step = jax.jit(made.init)(KEY, batch), jax.jit(made.step)
    for _ in range(3):
        before, (state, metrics) = state, step(state, batch)
        phases.append(float(metrics["phase"]))
        still = (before.augmenter["params"], before.opt_state)
        stays = (state.augmenter["params"], state.opt_state)
        if phases[-1] == 1:
            still, stays = before.student, state.student  # stats too
            assert metrics["grad_norm"] == 0
            assert metrics["loss"] > 0
            assert metrics["augmenter_grad_norm"] > 0
        chex.assert_trees_all_equal(still, stays)
    assert phases == [0, 1, 1]


def test_half_of_what_is_learnt_was_augmented_before():
    batch = make_batch(8)
    made = program(hard.random_affine(), None, replay=2)
    first, last, _ = run(made, batch, 5)
    rows = last.replay.rows
    assert rows["image"].shape == (16, SIDE, SIDE, 1)
    assert last.replay.added == 40
    # Steps 4 and 5 have replaced 2 and 3, and keep the labels of their places.
    np.testing.assert_array_equal(rows["label"], np.tile(batch["label"], 2))
    keys, apply = Keys(first.distillation.key), jax.jit(hard.random_affine().apply)
    for step, start in ((4, 0), (3, 8)):
        drawn = apply({"params": {}, "frozen": {}}, batch["image"], keys.at(step).noise)
        np.testing.assert_allclose(
            rows["image"][start : start + 8], drawn.images, atol=1e-6
        )


def test_what_is_masked_reaches_nothing():
    batch = {**make_batch(), "mask": jnp.array([1, 1, 0, 1, 0, 1, 1, 1.0])}
    gone = (batch["mask"] == 0)[:, None, None, None]
    made = program(hard.mix(2), consistency=0.0, replay=2)
    first, step, found = jax.jit(made.init)(KEY, batch), jax.jit(made.step), []
    for value in (0.0, 1e6):
        state = first
        dirty = {**batch, "image": jnp.where(gone, value, batch["image"])}
        for _ in range(2):
            state, metrics = step(state, dirty)
        found.append((state.student, state.augmenter, metrics))
    chex.assert_trees_all_equal(*found)
    last, metrics = step(first, {**batch, "mask": jnp.zeros(8)})
    assert metrics["loss"] == metrics["augmenter_loss"] == metrics["grad_norm"] == 0
    chex.assert_trees_all_equal(first.student, last.student)
    chex.assert_trees_all_equal(first.augmenter, last.augmenter)


@pytest.mark.slow
def test_a_resumed_run_is_the_run(tmp_path):
    """With augmenter, its Adam, phase and replay, bit for bit; a VAE is frozen."""
    network = hard.vae(SIDE**2, 5)
    network = network.with_variables(network.init(jax.random.key(3)))
    halves = network.segment(stop="latent"), network.segment("latent")
    batches = [
        {name: np.asarray(x) for name, x in make_batch().items()} for _ in range(3)
    ]
    made = program(
        hard.latent(*halves, 5, 1.0),
        optax.adam(1e-2),
        schedule="threshold",
        thresholds=(0.05, 0.2),
        replay=3,
    )

    def train(folder, steps):
        with training.Checkpoints(tmp_path / folder) as checkpoints:
            return training.fit(
                made, batches, key=KEY, steps=steps, checkpoints=checkpoints
            )[0]

    whole = train("whole", 8)
    stopped = train("part", 5)
    assert int(stopped.replay.added) == 40
    assert jax.tree.leaves(made.frozen(whole)["augmenter"])
    chex.assert_trees_all_equal(train("part", 8), whole)


def test_it_takes_other_networks_and_precisions():
    """A user's network of its own key, in bfloat16, averaged; a bfloat16 teacher."""
    student = Network.from_apply(
        lambda key: {"w": 0.1 * jax.random.normal(key, (SIDE**2, CLASSES))},
        lambda params, x: x.reshape(len(x), -1) @ params["w"],
        reads=("scan",),
    ).computing_in(jnp.bfloat16)
    teacher = Network.from_apply(
        lambda key: {"w": jax.random.normal(key, (SIDE**2, CLASSES))},
        lambda params, x: x.reshape(len(x), -1) @ params["w"],
        reads=("scan",),
    ).astype(jnp.bfloat16)
    batch = {"scan": make_batch()["image"]}
    made = hard.hard(
        student, teacher, kd(2.0), SGD, hard.elastic(), SGD, augments="scan", replay=1
    )
    _, last, found = run(with_average(made, 0.9), batch, 3)
    assert all(np.isfinite(list(map(float, m.values()))).all() for m in found)
    assert last.program.augmenter["params"]["hidden"].dtype == jnp.float32
    chex.assert_trees_all_equal_shapes(last.average, last.program.student)


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"schedule": "threshold", "moved": None}, {}, "augmenter_optimizer is None"),
        ({"thresholds": (2.0, 1.0)}, {}, "low must be below high"),
        ({"cap": 0.0}, {}, "cap must be above 0"),
        ({"augments": "pixels"}, {}, r"augments is 'pixels', but the batch has"),
        ({}, {"teacher_image": jnp.ones((8, 6, 6, 1))}, "the teacher reads teacher_im"),
        ({"augments": "label"}, {}, "the student reads image of the batch"),
        ({"label_weight": 0.5}, {"label": None}, "the batch has no label"),
    ],
)
def test_bad_input_is_refused(options, batch, message):
    given = {**make_batch(), **batch}
    given = {name: x for name, x in given.items() if x is not None}
    with pytest.raises(ValueError, match=message):
        program(**options).init(KEY, given)
