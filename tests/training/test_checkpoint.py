"""Which checkpoints are kept, which are refused, and what a full disk does."""

import os
import resource
import shutil
import signal
import socket

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import TRIALS, damaged

from jaxkd import distill, methods, models
from jaxkd.data import batches
from jaxkd.training import Checkpoints, fit

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def program():
    # Large enough for a file limit, small enough to be quick.
    student = models.mlp(16, (4096,), 3)
    return distill(student, None, methods.cross_entropy(), optax.sgd(0.1))


@pytest.fixture
def data(source):
    return batches(source, 4, epochs=4)


def at(scores):
    """An evaluation whose score at each step is given."""
    return lambda state: {"score": scores[int(state.step)]}


def saved(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize(("mode", "best"), [("max", 4), ("min", 6)])
def test_the_best_checkpoint_is_kept_beside_the_newest(
    program, data, tmp_path, mode, best
):
    scores = {2: 0.5, 4: 0.9, 6: 0.1, 8: 0.6, 10: 0.7, 12: 0.3}
    evaluation = {"evaluate": at(scores), "evaluate_every": 2, "key": KEY}
    with Checkpoints(tmp_path, keep=2, best="score", best_mode=mode) as checkpoints:
        assert checkpoints.best is checkpoints.latest is None
        fit(program, data, steps=8, checkpoints=checkpoints, **evaluation)
    # The best one of the first process is known to the second.
    with Checkpoints(tmp_path, keep=2, best="score", best_mode=mode) as checkpoints:
        last, _ = fit(program, data, steps=12, checkpoints=checkpoints, **evaluation)
        checkpoints.wait()
        assert (checkpoints.best, checkpoints.latest) == (best, 12)
        step, state, _, history = checkpoints.restore(last, checkpoints.best)
    assert saved(tmp_path) == [best, 10, 12]
    assert step == state.step == history[-1]["step"] == best
    assert history[-1]["score"] == scores[best]


@pytest.mark.parametrize("steps", [4, None])
def test_the_last_checkpoint_holds_the_last_evaluation(
    program, source, tmp_path, steps
):
    options = {"evaluate": at({4: 0.5}), "checkpoint_every": 2, "steps": steps}
    data = batches(source, 5, epochs=1)
    with Checkpoints(tmp_path, best="score") as checkpoints:
        state, history = fit(program, data, key=KEY, checkpoints=checkpoints, **options)
        checkpoints.wait()
        assert checkpoints.best == 4
        assert checkpoints.restore(state)[-1] == history


def test_a_step_that_is_not_there_is_refused(program, data, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = fit(program, data, key=KEY, steps=1, checkpoints=checkpoints)
        with pytest.raises(ValueError, match=r"no checkpoint.*can be used.*step 7"):
            checkpoints.restore(state, 7)


def test_another_configuration_is_refused(program, data, tmp_path):
    config = {"learning_rate": 0.1, "widths": (16, 8)}
    with Checkpoints(tmp_path, config=config) as checkpoints:
        fit(program, data, key=KEY, steps=1, checkpoints=checkpoints)
    with Checkpoints(tmp_path, config=config) as checkpoints:
        fit(program, data, key=KEY, steps=2, checkpoints=checkpoints)
    other = {"learning_rate": 0.2, "widths": (16, 8), "epochs": 3}
    message = (
        f"in {tmp_path} are of another configuration: epochs was None, is 3; "
        r"learning_rate was 0\.1, is 0\.2\. Use the one it was saved with, or another"
    )
    with (
        Checkpoints(tmp_path, config=other) as checkpoints,
        pytest.raises(ValueError, match=message),
    ):
        fit(program, data, key=KEY, checkpoints=checkpoints)
    assert saved(tmp_path) == [1, 2]


def test_another_model_is_refused_by_the_array_that_differs(program, data, tmp_path):
    wide = models.mlp(16, (4097,), 3)
    other = distill(wide, None, methods.cross_entropy(), optax.sgd(0.1))
    with Checkpoints(tmp_path) as checkpoints:
        fit(program, data, key=KEY, steps=1, checkpoints=checkpoints)
        message = (
            r"step 1: student/params/head/kernel has shape \(4096, 3\) in the "
            r"checkpoint and \(4097, 3\) in this program"
        )
        with pytest.raises(ValueError, match=message):
            fit(other, data, key=KEY, checkpoints=checkpoints)


@pytest.fixture
def full_disk():
    """Return a switch: files may not grow beyond 64 KiB until it is set back."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def switch(full):
        soft = 2**16 if full else before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    yield switch
    switch(False)


def test_a_full_disk_loses_no_earlier_checkpoint(program, data, tmp_path, full_disk):
    def fill(state):
        if state.step == 6:
            checkpoints.wait()
            full_disk(True)
        return {}

    options = {"key": KEY, "checkpoint_every": 2}
    message = (
        rf"the checkpoint of step 6 could not be written to {tmp_path} \(.*too large"
        r".* MiB are free there: make room and start again; the run goes on from step 4"
    )
    with (
        pytest.raises(OSError, match=r"(?s)" + message),
        Checkpoints(tmp_path) as checkpoints,
    ):
        fit(
            program,
            data,
            evaluate=fill,
            evaluate_every=1,
            checkpoints=checkpoints,
            **options,
        )
    full_disk(False)
    assert saved(tmp_path) == [2, 4]
    whole, _ = fit(program, data, key=KEY)
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = fit(program, data, checkpoints=checkpoints, **options)
    # What the failed save left was cleared away.
    assert not list(tmp_path.glob("*tmp*"))
    jax.tree.map(np.testing.assert_array_equal, state.student, whole.student)


class Terminated:
    """A metric writer that sends its process SIGTERM at a step."""

    def __init__(self, step):
        self.step = step

    def start(self, step):
        pass

    def write(self, step, metrics):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_leaves(program, data, tmp_path, caplog):
    before = signal.getsignal(signal.SIGTERM)
    whole, _ = fit(program, data, key=KEY)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(SystemExit) as left:
        fit(
            program,
            data,
            key=KEY,
            log_every=1,
            checkpoints=checkpoints,
            writers=[Terminated(7)],
        )
    assert left.value.code == 143
    assert f"terminated at step 7; saved in {tmp_path}" in caplog.text
    assert saved(tmp_path) == [7]
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = fit(program, data, key=KEY, checkpoints=checkpoints)
    jax.tree.map(np.testing.assert_array_equal, state.student, whole.student)


def test_without_checkpoints_sigterm_is_left_alone(program, data):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        fit(program, data, key=KEY, steps=2, log_every=1, writers=[Terminated(1)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["mine"]


STATE = {
    "student": {"kernel": jnp.arange(96.0).reshape(8, 12), "bias": jnp.ones(3)},
    "count": jnp.int32(4),
    "key": jax.random.key(7),
}


def of_step(step):
    """A state, a place and evaluations from which the step shows."""
    state = jax.tree.map(lambda x: x, STATE) | {"count": jnp.int32(step)}
    return state, {"place": step}, [{"step": step, "score": 1 / step}]


def same(a, b):
    a, b = ({**x, "key": jax.random.key_data(x["key"])} for x in (a, b))
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def save_two(folder, best=None):
    """Save checkpoints of steps 2 and 4."""
    with Checkpoints(folder, best=best) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, *of_step(step))
    return folder


@pytest.mark.slow
def test_no_damaged_checkpoint_is_restored(tmp_path, caplog):
    passed_over, two = 0, save_two(tmp_path)
    for what in damaged(two / "4"):
        caplog.clear()
        with Checkpoints(two) as checkpoints:
            step, *found = checkpoints.restore(STATE)
            assert checkpoints.latest == step, what
            assert checkpoints.last_good() == step, what
        state, place, history = of_step(step)
        assert same(found[0], state), what
        assert found[1:] == [place, history], what
        if step == 2:
            passed_over += 1
            assert "cannot be used (step 4: " in caplog.text, what
            assert "going on from step 2" in caplog.text, what
    # The others were in files that no restore reads.
    assert passed_over > TRIALS / 2


def test_damaged_metrics_choose_no_other_best(tmp_path):
    two = save_two(tmp_path / "two", "score")
    for what in damaged(two / "4" / "metrics", 12):
        kept = shutil.copytree(two, tmp_path / "kept")
        with Checkpoints(kept, best="score") as checkpoints:
            assert (checkpoints.best, checkpoints.latest) == (2, 2), what
        assert sorted(path.name for path in kept.iterdir()) == ["2", "4.damaged"]
        shutil.rmtree(kept)


def test_a_second_writer_is_refused_with_the_first_ones_name(program, data, tmp_path):
    holder = rf"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}"
    with Checkpoints(tmp_path) as first, Checkpoints(tmp_path) as second:
        first.save(1, *of_step(1))
        first.wait()
        with pytest.raises(BlockingIOError, match=f"{holder}: wait until it has ended"):
            fit(program, data, key=KEY, checkpoints=second)
        with pytest.raises(BlockingIOError, match=holder):
            second.save(2, *of_step(2))
    # A reader takes no lock, and one that ended has none.
    with Checkpoints(tmp_path) as second, Checkpoints(tmp_path) as first:
        assert first.restore(STATE)[0] == 1
        second.save(2, *of_step(2))
    assert saved(tmp_path) == [1, 2]
    assert not (tmp_path / ".lock").exists()


def test_a_dead_writers_lock_and_leftovers_are_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on another")
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, *of_step(1))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (jnp.ones(3), "state is Array"),
        ({}, "state is None"),
        ({"a": 3}, "a is 3: give an array"),
        ({"a": "x"}, "a is 'x'"),
    ],
)
def test_a_state_that_is_no_tree_of_arrays_is_named(tmp_path, state, what):
    with Checkpoints(tmp_path) as checkpoints:
        for call in (
            lambda: checkpoints.save(1, state, {}, []),
            lambda: checkpoints.restore(state),
        ):
            with pytest.raises(ValueError, match=f"tree of arrays, but {what}"):
                call()


def test_arrays_of_numpy_come_back(tmp_path):
    state = {"a": np.arange(3.0, dtype="f4")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, [])
        np.testing.assert_array_equal(checkpoints.restore(state)[1]["a"], state["a"])


def test_a_folder_that_cannot_be_made_or_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"file/x of checkpoints cannot be made \(Not a d"
    ):
        Checkpoints(tmp_path / "file" / "x")

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    with Checkpoints(tmp_path) as checkpoints:
        message = rf"{tmp_path} cannot be written to \(Permission denied\): allow writi"
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.open", deny)
            with pytest.raises(OSError, match=message):
                checkpoints.claim()


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (OSError(28, "No space left on device"), "MiB are free there: make room"),
        (ValueError("write: No space left on device"), "MiB are free there: make room"),
        (PermissionError(13, "Permission denied"), "Allow writing there and start"),
        (
            jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED"),
            "Another process of this run",
        ),
        (RuntimeError("broken"), r"\(broken\)\. Start again; there is none before it"),
    ],
)
def test_the_first_cause_of_a_failed_save_is_told(tmp_path, monkeypatch, cause, remedy):
    def fail(*_, **__):
        raise TimeoutError("at the barrier") from cause

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.claim()
        monkeypatch.setattr(checkpoints._manager, "save", fail)
        if isinstance(cause, jax.errors.JaxRuntimeError):
            monkeypatch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(
            OSError, match=rf"step 1 could not be written to .*{remedy}"
        ):
            checkpoints.save(1, *of_step(1))
        monkeypatch.undo()


def test_what_failed_first_leaves_though_a_save_fails_too(
    tmp_path, monkeypatch, caplog
):
    def fail():
        raise RuntimeError("the save")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
    with pytest.raises(ZeroDivisionError), checkpoints:
        1 / 0  # noqa: B018
    assert "the save" in caplog.text
