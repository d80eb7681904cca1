"""Federated distillation over real client processes, and the checks that guard it."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxkd.federated.engine import JOINING, Coordinator, Upload
from jaxkd.programs import federated_distillation

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def worker():
    spec = importlib.util.spec_from_file_location("federated_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def in_one_process(worker):
    """Return ``left out -> last states of the clients``; left out are (round, client).

    The program is the one whose rounds `jaxkd.training.fit` runs.
    """
    data = worker.rounds(worker.blobs())
    program = federated_distillation(worker.client())
    step = jax.jit(program.step)

    def run(left_out):
        state = None
        for number in range(worker.ROUNDS):
            batch = data.take(np.arange(worker.CLIENTS) + number * worker.CLIENTS)
            if state is None:
                state = jax.jit(program.init)(jax.random.key(worker.SEED), batch)
            for when, client in left_out:
                if when == number:
                    batch["mask"][..., client] = False
            state, _ = step(state, batch)
        return state.clients

    return run


def assert_same_client(states, number, leaves):
    expected = [np.asarray(x)[number] for x in jax.tree.leaves(states)]
    assert len(expected) == len(leaves)
    for a, b in zip(expected, leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def play(worker, uploads=lambda number, client, upload: upload):
    """Run the engine's two sides without a transport; ``uploads`` may spoil answers."""
    server = worker.coordinator()
    clients = [worker.participant(worker.blobs(), i) for i in range(worker.CLIENTS)]
    server.gather({c.number: c.own for c in clients})
    for client in clients:
        client.meet(server.proxies, server.owner)
    for number in range(worker.ROUNDS):
        drawn = server.draw(number)
        answers = {
            c.number: uploads(number, c.number, c.contribute(number, drawn))
            for c in clients
        }
        targets, valid, _ = server.combine(number, answers)
        for client in clients:
            client.absorb(targets, valid)
    return server, clients


@pytest.mark.slow
def test_the_engine_computes_what_the_program_does(worker, in_one_process):
    server, clients = play(worker)
    assert server.excluded == []
    states = in_one_process(())
    for client in clients:
        assert_same_client(states, client.number, jax.tree.leaves(client.state))


@pytest.mark.slow
def test_a_wrong_upload_costs_its_own_contribution_only(worker, in_one_process):
    def spoil(number, client, upload):
        if (number, client) == (1, 2):
            return Upload(upload.predictions * np.nan, upload.rows)
        return upload

    server, clients = play(worker, spoil)
    assert [x[:2] for x in server.excluded] == [(1, 2)]
    states = in_one_process([(1, 2)])
    for client in clients:
        assert_same_client(states, client.number, jax.tree.leaves(client.state))
    # And it did make a difference.
    with pytest.raises(AssertionError):
        assert_same_client(in_one_process(()), 0, jax.tree.leaves(clients[0].state))


GOOD = np.full((2, 3), 1 / 3, np.float32), np.array([0, 4], np.int32)


@pytest.mark.parametrize(
    ("upload", "reason"),
    [
        (TimeoutError("late"), r"did not answer \(TimeoutError: late"),
        (Upload(GOOD[0][:, :2], GOOD[1]), r"shape \(2, 2\).*not \(rows, 3\)"),
        (Upload(GOOD[0], GOOD[1][:1]), r"shape \(2, 3\) for rows of shape \(1,\)"),
        (Upload(GOOD[0][None], GOOD[1][None]), "predictions have shape"),
        (Upload(GOOD[0].astype(int), GOOD[1]), "predictions are int64, not floats"),
        (Upload(GOOD[0], GOOD[1] * 1.0), "rows are float64, not integers"),
        (Upload(GOOD[0], np.array([0, 5])), "not different positions below 5"),
        (Upload(GOOD[0], np.array([-1, 0])), "not different positions below 5"),
        (Upload(GOOD[0], np.array([1, 1])), "not different positions below 5"),
        (Upload(GOOD[0] * [[1], [np.inf]], GOOD[1]), "1 of its 2 .* not finite"),
        (Upload(GOOD[0] * 2, GOOD[1]), "2 of its 2 predictions are no prob"),
        (Upload(GOOD[0] * [[3, 3, -3]], GOOD[1]), "2 of its 2 predictions are no prob"),
    ],
)
def test_uploads_are_checked(upload, reason, caplog):
    server = Coordinator(3, (4,), 5)
    server.gather({0: np.ones((3, 4), "f4"), 1: np.ones((2, 4), "f4")})
    certain = Upload(np.eye(3, dtype="f4")[:2], np.array([0, 1]))
    targets, valid, used = server.combine(2, {0: certain, 1: upload})
    np.testing.assert_array_equal(targets[:2], certain.predictions)
    assert valid.tolist() == [True, True, False, False, False]
    assert used == certain.predictions.nbytes + certain.rows.nbytes
    (excluded,) = server.excluded
    assert excluded[:2] == (2, 1)
    assert re.search(reason, excluded.reason)
    assert "round 2: client 1 is left out" in caplog.text


def test_who_gives_no_proxies_is_no_member(caplog):
    server = Coordinator(3, (4,), 100)
    proposals = {
        0: np.ones((2, 4), "f4"),
        1: np.ones((2, 5), "f4"),
        2: np.ones((2, 4), "u1"),
        3: np.full((2, 4), np.nan),
        4: np.ones((0, 4), "f4"),
        5: ConnectionError("gone"),
        6: np.zeros((1, 4), "f8"),
    }
    server.gather(proposals)
    assert server.members == (0, 6)
    assert server.owner.tolist() == [0, 0, 6]
    assert sorted(server.draw(0)) == [0, 1, 2]
    reasons = {x.client: x.reason for x in server.excluded}
    assert all(x.round_number == JOINING for x in server.excluded)
    assert "shape (2, 5), not (samples, 4)" in reasons[1]
    assert "uint8, not floats" in reasons[2]
    assert "not finite" in reasons[3]
    assert "gave no proxies" in reasons[4]
    assert "did not answer" in reasons[5]
    with pytest.raises(ValueError, match="none of 1 clients gave proxies"):
        Coordinator(3, (4,), 100).gather({1: proposals[1]})


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "FLWR_TELEMETRY_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def federate(folder, timeout, faults):
    """Run a server and its clients, and return what the server saw."""
    pytest.importorskip("flwr", reason="pip install 'jaxkd-distill[federated]'")
    port = free_port()
    processes = {"server": start(folder, port, "server", len(faults), timeout)}
    for number, what in faults.items():
        processes[number] = start(folder, port, number, *what)
    try:
        errors = {"server": processes["server"].communicate(timeout=900)[1]}
        for number, what in faults.items():
            if "slow@0" not in what:
                errors[number] = processes[number].communicate(timeout=300)[1]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    status = {who: process.returncode for who, process in processes.items()}
    assert status["server"] == 0, errors
    result = json.loads((folder / "server.json").read_text())
    left_out = {(r, client): reason for r, client, reason in result["excluded"]}
    return result, left_out, status, errors


@pytest.mark.slow
def test_a_round_does_not_wait_for_a_client_that_hangs(tmp_path):
    faults = {0: ["echo"], 1: ["echo", "slow@0"]}
    result, left_out, status, errors = federate(tmp_path, 6, faults)
    assert status[0] == 0, errors
    assert left_out.keys() == {(0, 1), (1, 1), (2, 1)}
    assert [x["contributors"] for x in result["history"]] == [1, 1, 1]
    assert [x["accuracy"] for x in result["history"]] == [{"0": 0.5}] * 3


@pytest.mark.slow
def test_dead_and_broken_clients_cost_their_own_contribution(
    tmp_path, worker, in_one_process
):
    faults = {0: [], 1: ["nan@0", "shape@1"], 2: ["killed@1"]}
    result, left_out, status, errors = federate(tmp_path, 600, faults)
    assert status == {"server": 0, 0: 0, 1: 0, 2: -9}, errors
    assert left_out.keys() == {(0, 1), (1, 1), (1, 2), (2, 2)}
    assert "not finite" in left_out[0, 1]
    assert "shape" in left_out[1, 1]
    assert "did not answer" in left_out[1, 2]
    assert "round 1: client 2 is left out: it did not" in errors["server"]
    assert [x["contributors"] for x in result["history"]] == [2, 1, 2]
    assert result["history"][2]["accuracy"] == {"0": 0.5, "1": 0.5}

    states = in_one_process(left_out)
    for number in (0, 1):
        with np.load(tmp_path / f"{number}.npz", allow_pickle=False) as file:
            leaves = [file[str(i)] for i in range(len(file.files))]
        assert_same_client(states, number, leaves)
