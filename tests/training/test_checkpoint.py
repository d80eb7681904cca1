"""Which checkpoints are kept, which are refused, and what a full disk does."""

import os
import resource
import signal

import jax
import numpy as np
import optax
import pytest

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
