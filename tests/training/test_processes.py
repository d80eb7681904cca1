"""Real processes: killed, preempted, out of disk, and several training as one."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("worker.py")
STEPS = 40


def start(folder, *arguments):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def work(folder, *arguments):
    return finish(start(folder, *arguments))


def final(folder):
    with np.load(folder / "final.npz", allow_pickle=False) as file:
        return dict(file)


def logged(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    status, errors = work(folder, "--steps", STEPS)
    assert status == 0, errors
    return folder


def assert_identical(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
def test_a_run_killed_at_random_steps_ends_bit_identical(whole, tmp_path):
    # One right after a save began, three anywhere: each is a new process.
    kills = sorted([6, *random.Random(3).sample(range(8, STEPS), 3)])
    for step in kills:
        status, errors = work(tmp_path, "--steps", STEPS, "--fatal", "SIGKILL", step)
        assert status == -signal.SIGKILL, errors
        assert logged(tmp_path)[-1]["step"] == step
    status, errors = work(tmp_path, "--steps", STEPS)
    assert status == 0, errors
    assert_identical(final(tmp_path), final(whole))
    assert logged(tmp_path) == logged(whole)
    *lines, last = logged(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert last["step"] == STEPS
    assert "accuracy" in last


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def begin(folder, count, steps, fatal=()):
    """Start processes that train as one."""
    port = free_port()
    return [
        start(
            folder,
            *("--steps", steps, "--plain"),
            *("--processes", count, index, port),
            *(fatal if index == 0 else ()),
        )
        for index in range(count)
    ]


@pytest.mark.slow
def test_who_outlives_another_process_says_why_and_both_go_on(tmp_path):
    survivor, other = begin(tmp_path, 2, steps=1000)
    log = tmp_path / "metrics.jsonl"
    while not log.exists() or len(logged(tmp_path)) < 6:
        assert survivor.poll() is None
        time.sleep(0.1)
    other.kill()
    status, errors = finish(survivor)
    other.communicate()
    assert status != 0
    assert "another process has ended" in errors
    assert "make room" not in errors
    done = logged(tmp_path)[-1]["step"]
    for status, errors in map(finish, begin(tmp_path, 2, steps=done + 5)):
        assert status == 0, errors
    steps = [line["step"] for line in logged(tmp_path)]
    assert steps[:-1] == list(range(1, done + 6))


@pytest.mark.slow
def test_joined_processes_are_preempted_together_and_resume_as_four(tmp_path):
    """Two processes are told to stop, four go on, one checks the numbers."""

    def joined(count, fatal=()):
        return [finish(process) for process in begin(tmp_path, count, 12, fatal)]

    for status, errors in joined(2, fatal=("--fatal", "SIGTERM", 3)):
        assert status == 128 + signal.SIGTERM, errors
        assert "terminated at step" in errors
    # The signal spreads to the other process within a few steps.
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert 3 <= max(saved) < 12
    for status, errors in joined(4):
        assert status == 0, errors
    *lines, last = logged(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))

    alone = tmp_path / "alone"
    status, errors = work(alone, "--steps", 12, "--plain")
    assert status == 0, errors
    expected, found = final(alone), final(tmp_path)
    assert expected.keys() == found.keys()
    for name in expected:
        # In double precision: sums over processes are taken in another order.
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-7, atol=1e-9, err_msg=name
        )
    # All of them evaluate, on arrays that no process holds whole.
    *_, expected = logged(alone)
    assert last.keys() == expected.keys() >= {"accuracy", "nll"}
    assert last["nll"] == pytest.approx(expected["nll"], rel=1e-6)
