"""What identifies a run: its key, and a teacher that is kept by fingerprint alone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Program
from jaxkd.training import Checkpoints, fit

KEY = jax.random.key(0)
BATCHES = [{"x": np.full((2, 1), i, np.float32)} for i in range(4)]
SIDE = 512
"""Of the teacher's matrix: 1 MiB."""


def program(teacher=1.0, frozen=True):
    """A student of 8 numbers that follows a teacher's mean, drawn from the key."""

    def init(key, batch):
        kernel = teacher * jax.random.normal(key, (SIDE, SIDE))
        return {"student": jnp.zeros(8), "teacher": {"kernel": kernel}}

    def step(state, batch):
        goal = state["teacher"]["kernel"].mean() + batch["x"].mean()
        student = state["student"] / 2 + goal
        return {**state, "student": student}, {"loss": goal}

    if not frozen:
        return Program(init, step)
    return Program(init, step, frozen=lambda state: state["teacher"])


TOY = program()


def run(folder, given=TOY, key=KEY, **options):
    with Checkpoints(folder) as checkpoints:
        return fit(given, BATCHES, key=key, checkpoints=checkpoints, **options)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_checkpoint_is_of_the_students_size_and_resumes_identically(tmp_path):
    whole, history = fit(TOY, BATCHES, key=KEY)
    run(tmp_path / "run", steps=2)
    assert size(tmp_path / "run" / "2") < 20_000
    again = run(tmp_path / "run")
    assert_identical(again[0], whole)
    assert again[1][-1] == history[-1]
    # Without a word of the program, all of the state is saved.
    run(tmp_path / "all", program(frozen=False), steps=2)
    assert size(tmp_path / "all" / "2") > 4 * SIDE**2 / 2


def test_another_teacher_is_refused_by_name(tmp_path):
    run(tmp_path, steps=2)
    message = (
        rf"in {tmp_path} are of another configuration: fingerprint of teacher/kernel "
        r"was '[0-9a-f]{16}', is '[0-9a-f]{16}'\. Use the one it was saved with, or"
    )
    with pytest.raises(ValueError, match=message):
        run(tmp_path, program(teacher=1.01))


def test_another_key_is_refused(tmp_path):
    plain = program(frozen=False)
    run(tmp_path, plain, steps=2)
    message = r"another configuration: key was \[0, 0\], is \[0, 1\]\. Use the one"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, plain, key=jax.random.key(1))


def test_a_state_is_restored_with_the_teacher_of_another(tmp_path):
    state, _ = run(tmp_path, checkpoint_every=2)
    with Checkpoints(tmp_path) as checkpoints:
        step, early, _, _ = checkpoints.restore(state, 2)
        assert (step, early["student"][0] != state["student"][0]) == (2, True)
        assert_identical(early["teacher"], state["teacher"])
        shapes = jax.eval_shape(lambda: state)
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s.sharding),
            shapes,
            state,
        )
        with pytest.raises(ValueError, match=r"hold \['teacher/kernel'\]: give their"):
            checkpoints.restore(shapes, 2)


@pytest.mark.parametrize(
    "option", [{"log_every": 0}, {"checkpoint_every": -1}, {"evaluate_every": -2}]
)
def test_no_steps_between_are_refused(option):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        fit(TOY, BATCHES, key=KEY, **option)


@pytest.mark.parametrize("keep", [0, -1])
def test_nothing_kept_is_refused(tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep must be at least 1, got {keep}"):
        Checkpoints(tmp_path, keep)


@pytest.mark.usefixtures("unchecked_shapes")
def test_another_best_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown best_mode 'high'.*Valid: max, min"):
        Checkpoints(tmp_path, best="score", best_mode="high")
