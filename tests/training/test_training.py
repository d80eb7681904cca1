"""The loop: whole runs, exact resumption, and an answer for every way to go wrong."""

import io
import logging
import shutil
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from jaxkd import Method, Network, combine, distill, methods, models
from jaxkd.data import batches
from jaxkd.evaluation.classification import evaluator
from jaxkd.training import Checkpoints, ProgressBar, fit

KEY = jax.random.key(0)
POISONED = 7
"""The step, counted from 1, at which `poisoned`'s loss is NaN."""


class Student(nnx.Module):
    """With dropout and BatchNorm, so that a lost key or average shows."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.first(x.reshape(len(x), -1)))
        return self.head(self.dropout(nnx.relu(x)))


@pytest.fixture
def data(source):
    """Five batches an epoch, ten in all."""
    return batches(source, 4, epochs=2)


@pytest.fixture(scope="module")
def teacher():
    network = models.mlp(16, (4,), 3)
    return network, jax.jit(network.init)(jax.random.key(5))


@pytest.fixture(scope="module")
def program(teacher):
    network, variables = teacher
    return distill(
        Network.from_nnx(Student),
        network.with_variables(variables),
        combine((0.5, methods.cross_entropy()), (0.5, methods.kd())),
        optax.adam(1e-2),
    )


@pytest.fixture(scope="module")
def poisoned():
    def loss(variables, student, teacher, batch, key, step):
        value = jnp.where(step == POISONED - 1, jnp.nan, (student.logits**2).mean())
        return value, ({}, {"square": value})

    method = Method(lambda *_: {"params": {}, "state": {}}, loss)
    return distill(models.mlp(16, (4,), 3), None, method, optax.sgd(1e-2))


def norm(state):
    """An evaluation that tells any two states apart."""
    return {"norm": optax.tree.norm(state.student["params"])}


def content(state):
    return jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, content(a), content(b))


@pytest.fixture(scope="module")
def whole(program, source):
    """A run of ten steps that nothing interrupts, evaluated every two."""
    return fit(
        program,
        batches(source, 4, epochs=2),
        key=KEY,
        evaluate=norm,
        evaluate_every=2,
    )


@pytest.mark.slow
def test_fit_is_init_and_step_over_the_batches(program, data, whole):
    state = jax.jit(program.init)(KEY, next(iter(data)))
    step = jax.jit(program.step)
    for batch in data:
        state, metrics = step(state, batch)
    assert state.step == 10
    assert_identical(whole[0], state)
    last = whole[1][-1]
    assert last["step"] == 10
    for name, value in metrics.items():
        assert last[f"train_{name}"] == float(value)
    assert last["norm"] == float(norm(state)["norm"])


def test_history_holds_every_evaluation_and_one_at_the_end(program, data, whole):
    assert [entry["step"] for entry in whole[1]] == [2, 4, 6, 8, 10]
    assert len({entry["norm"] for entry in whole[1]}) == 5
    state, history = fit(
        program, data, key=KEY, steps=5, evaluate=norm, evaluate_every=3
    )
    assert state.step == 5
    assert [entry["step"] for entry in history] == [3, 5]
    _, history = fit(program, data, key=KEY, steps=4)
    assert [entry["step"] for entry in history] == [4]
    names = {"loss", "grad_norm", "cross_entropy", "kd"}
    assert set(history[0]) == {"step", *(f"train_{name}" for name in names)}


def interrupted(program, data, folder, stop, **options):
    """Run to ``stop`` and return what a new `fit` makes of the rest."""
    options = {"key": KEY, "evaluate": norm, "evaluate_every": 2, **options}
    with Checkpoints(folder) as checkpoints:
        fit(program, data, steps=stop, checkpoints=checkpoints, **options)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest == stop
        return fit(program, data, checkpoints=checkpoints, **options)


@pytest.mark.parametrize("stop", [4, 6])
def test_resumed_run_is_identical_to_an_uninterrupted_one(
    program, data, tmp_path, whole, stop
):
    state, history = interrupted(program, data, tmp_path, stop)
    assert_identical(state, whole[0])
    assert history == whole[1]


def test_resumed_run_does_not_depend_on_how_often_it_is_saved_or_watched(
    program, data, tmp_path, whole
):
    state, history = interrupted(
        program, data, tmp_path, 4, checkpoint_every=1, log_every=1
    )
    assert_identical(state, whole[0])
    assert history == whole[1]


def test_a_finished_run_is_returned_as_it_was(program, data, tmp_path, whole):
    state, history = interrupted(program, data, tmp_path, 10)
    assert_identical(state, whole[0])
    assert history == whole[1]


def test_a_finished_run_goes_on_with_more_epochs(
    program, data, source, tmp_path, whole
):
    options = {"key": KEY, "evaluate": norm, "evaluate_every": 2}
    with Checkpoints(tmp_path) as checkpoints:
        fit(program, batches(source, 4, epochs=1), checkpoints=checkpoints, **options)
        assert checkpoints.latest == 5
    with Checkpoints(tmp_path) as checkpoints:
        state, history = fit(program, data, checkpoints=checkpoints, **options)
    assert_identical(state, whole[0])
    # The end of the first epoch was evaluated too.
    assert [entry for entry in history if entry["step"] != 5] == whole[1]


def test_another_teacher_is_refused_by_name(program, data, saved, teacher):
    network, variables = teacher
    other = network.with_variables(jax.tree.map(lambda x: x + 1e-6, variables))
    optimizer = optax.adam(1e-2)
    program = distill(Network.from_nnx(Student), other, methods.kd(), optimizer)
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(ValueError, match=r"fingerprint of teacher/params was '.*', is"),
    ):
        fit(program, data, key=KEY, checkpoints=checkpoints)


def test_an_evaluator_is_taken_as_it_is(program, data, source):
    evaluate = evaluator(Network.from_nnx(Student), source)
    state, history = fit(program, data, key=KEY, steps=2, evaluate=evaluate)
    assert history[-1].items() >= evaluate(state.student).items()


@pytest.mark.slow
def test_a_checkpoint_holds_its_own_step_and_nothing_later(program, data, tmp_path):
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        fit(
            program,
            data,
            key=KEY,
            evaluate=norm,
            evaluate_every=1,
            checkpoints=checkpoints,
            checkpoint_every=1,
        )
    for step in range(1, 11):
        # A folder with this checkpoint only, as a run stopped here leaves it.
        alone = tmp_path / "alone" / str(step)
        shutil.copytree(tmp_path / str(step), alone / str(step))
        with Checkpoints(alone) as checkpoints:
            like = jax.jit(program.init)(KEY, next(iter(data)))
            found, state, position, history = checkpoints.restore(like)
        assert found == state.step == step
        assert [entry["step"] for entry in history] == list(range(1, step + 1))
        assert history[-1]["norm"] == float(norm(state)["norm"])
        rest = iter(data)
        rest.set_state(position)
        assert len(list(rest)) == 10 - step


def test_only_the_newest_checkpoints_are_kept(program, data, tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        fit(program, data, key=KEY, checkpoints=checkpoints, checkpoint_every=2)
    steps = sorted(int(path.name) for path in tmp_path.iterdir() if path.is_dir())
    assert steps == [6, 8, 10]


def overwrite(path: Path):
    path.write_bytes(b"garbage")


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def saved(program, data, tmp_path):
    """A folder with checkpoints of steps 2 and 4."""
    with Checkpoints(tmp_path) as checkpoints:
        fit(
            program,
            data,
            key=KEY,
            steps=4,
            evaluate=norm,
            evaluate_every=2,
            checkpoints=checkpoints,
            checkpoint_every=2,
        )
    return tmp_path


def spoil(folder, damage):
    for path in folder.rglob("*"):
        if path.is_file():
            damage(path)


@pytest.mark.parametrize("damage", [overwrite, truncate, Path.unlink])
def test_a_corrupt_newest_checkpoint_is_passed_over(
    program, data, saved, whole, caplog, damage
):
    spoil(saved / "4", damage)
    with (
        caplog.at_level(logging.WARNING, "jaxkd"),
        Checkpoints(saved) as checkpoints,
    ):
        state, history = fit(
            program,
            data,
            key=KEY,
            evaluate=norm,
            evaluate_every=2,
            checkpoints=checkpoints,
        )
    assert_identical(state, whole[0])
    assert history == whole[1]
    found = [r.getMessage() for r in caplog.records if r.name.startswith("jaxkd")]
    assert len(found) == 1
    assert f"checkpoints in {saved} cannot be used (step 4:" in found[0]
    assert found[0].endswith("going on from step 2")
    # It is out of the way of those that follow.
    assert sorted(p.name for p in saved.iterdir()) == ["10", "2", "4.damaged"]


def test_no_readable_checkpoint_is_refused_with_the_folder(program, data, saved):
    for step in ("2", "4"):
        spoil(saved / step, overwrite)
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(
            ValueError, match=rf"in {saved} can be used.*another folder"
        ) as e,
    ):
        fit(program, data, key=KEY, checkpoints=checkpoints)
    assert "step 4: " in str(e.value)
    assert "step 2: " in str(e.value)


@pytest.mark.parametrize(
    "student",
    [models.mlp(16, (5,), 3), models.mlp(16, (4, 4), 3)],
    ids=["wide", "deep"],
)
def test_a_checkpoint_of_other_shapes_is_refused(data, tmp_path, student):
    def supervised(network):
        return distill(network, None, methods.cross_entropy(), optax.sgd(0.1))

    with Checkpoints(tmp_path) as checkpoints:
        fit(
            supervised(models.mlp(16, (4,), 3)),
            data,
            key=KEY,
            steps=1,
            checkpoints=checkpoints,
        )
        with pytest.raises(ValueError, match=rf"no checkpoint in {tmp_path}.*step 1:"):
            fit(supervised(student), data, key=KEY, checkpoints=checkpoints)


def test_another_pipelines_checkpoint_is_refused(program, source, saved):
    other = batches(source, 5, epochs=2)
    with Checkpoints(saved) as checkpoints, pytest.raises(ValueError, match="size 4"):
        fit(program, other, key=KEY, checkpoints=checkpoints)


@pytest.mark.parametrize("log_every", [1, 50])
def test_nan_is_named_and_never_saved(poisoned, source, tmp_path, log_every):
    data = batches(source, 4, epochs=4)
    message = rf"loss is nan at step 7; last good checkpoint: step 6 in {tmp_path}\. Lo"
    with (
        Checkpoints(tmp_path, keep=20) as checkpoints,
        pytest.raises(FloatingPointError, match=message),
    ):
        fit(
            poisoned,
            data,
            key=KEY,
            checkpoints=checkpoints,
            checkpoint_every=3,
            log_every=log_every,
        )
    steps = sorted(int(path.name) for path in tmp_path.iterdir() if path.is_dir())
    assert steps == [3, 6]
    with pytest.raises(FloatingPointError, match="last good checkpoint: none"):
        fit(poisoned, data, key=KEY, log_every=log_every)


def test_no_batches_are_refused(program):
    empty = grain.MapDataset.source([]).to_iter_dataset()
    with pytest.raises(ValueError, match="batches is empty: there is nothing to train"):
        fit(program, empty, key=KEY)


@pytest.mark.parametrize("bad", [0, 2])
def test_a_batch_that_is_not_finite_is_refused(program, source, bad):
    found = [source.take(np.arange(i, i + 4)) for i in range(3)]
    found[bad]["image"][1, 0, 0, 0] = np.nan
    data = grain.MapDataset.source(found).to_iter_dataset()
    with pytest.raises(ValueError, match=r"\['image'\] holds 1 values.*in example 1"):
        fit(program, data, key=KEY)


def test_donation_leaves_the_callers_teacher_alone(program, data, teacher):
    _, variables = teacher
    before = jax.tree.map(np.array, variables)
    state, _ = fit(program, data, key=KEY, steps=3)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(np.testing.assert_array_equal, state.teacher, before)
    # A run that starts from another's state leaves that alive as well.
    warm = Network.from_nnx(Student).with_variables(state.student)
    again = distill(warm, None, methods.cross_entropy(), optax.sgd(0.1))
    fit(again, data, key=KEY, steps=1)
    assert np.isfinite(optax.tree.norm(state.student["params"]))


def test_progress_shows_speed_and_loss(program, data):
    console = Console(
        record=True, force_terminal=True, width=120, file=io.StringIO(), _environ={}
    )
    with ProgressBar(console) as bar:
        fit(program, data, key=KEY, steps=10, log_every=2, progress=bar, name="toy")
        bar._progress.refresh()
    text = console.export_text()
    for part in ("toy", "10/10", "steps/s", "loss ", "left"):
        assert part in text


def test_progress_begins_where_a_run_resumes(program, data, saved):
    bar = ProgressBar(Console(file=io.StringIO()))
    with Checkpoints(saved) as checkpoints:
        bar.start("another run", 3)
        fit(program, data, key=KEY, steps=4, checkpoints=checkpoints, progress=bar)
    (task,) = bar._progress.tasks
    assert (task.description, task.completed, task.total) == ("training", 4, 4)


def test_progress_draws_nothing_off_a_terminal(program, data):
    out = io.StringIO()
    with ProgressBar(Console(file=out, force_terminal=False)) as bar:
        fit(program, data, key=KEY, steps=2, log_every=1, progress=bar)
    assert out.getvalue().strip() == ""
