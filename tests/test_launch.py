"""The launchers: joined processes run an experiment as one, and go on with it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "tpu" / "launch.py"
RUN = (
    *("run", "baselines", "--preset", "demo", "--seeds", "1", "--pairs", "mlp"),
    *(
        "--methods",
        "cross_entropy",
        "kd",
        "--task.epochs",
        "2",
        "--teacher-epochs",
        "1",
    ),
)


def slurm(index, processes, port):
    """Return the environment of a process that SLURM started."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(processes),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": "0",
    }


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def launch(folder, processes=2):
    """Start the processes as SLURM would, and return what they have written."""
    port = free_port()
    started = []
    for index in range(processes):
        command = [sys.executable, LAUNCH, *RUN, "--folder", folder]
        started.append(
            subprocess.Popen(
                [*map(str, command)],
                cwd=ROOT,
                env=slurm(index, processes, port),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        output = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, output
    return output


@pytest.mark.slow
def test_processes_run_an_experiment_as_one_and_go_on_with_it(tmp_path):
    folder = tmp_path / "run"
    launch(folder)
    results = folder / "results.json"
    records = json.loads(results.read_text())["records"]
    assert {record["method"] for record in records} == {
        *("teacher", "cross_entropy", "kd")
    }
    part = next(folder.glob("**/kd/seed0/records.json"))
    part.unlink()
    results.unlink()
    output = launch(folder)
    assert "jaxkd resume" in output[0]
    again = json.loads(results.read_text())["records"]
    values = [[(r["method"], r["value"]) for r in found] for found in (records, again)]
    assert values[0] == values[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (["run", "baselines"], 1, "give --folder, a new folder on a disk"),
        (["report", "nothing"], 1, "unknown experiment 'nothing'"),
    ],
)
def test_what_cannot_be_launched_says_so(given, status, message):
    found = subprocess.run(
        [sys.executable, str(LAUNCH), *given],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=slurm(0, 1, free_port()),
        timeout=120,
    )
    assert found.returncode == status
    assert message in found.stdout + found.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "tpu").glob("*.sh")), ids=str)
def test_scripts_parse_and_say_what_they_need(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    found = subprocess.run(
        ["bash", script],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert found.returncode
    needed = {"tpu_vm.sh": "PROJECT: the Google", "slurm_h100.sh": "say what to run"}
    assert needed[script.name] in found.stderr


def test_the_cluster_job_is_valid_and_counts_its_chips():
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with jaxkd-distill[docs]")
    job = yaml.safe_load((ROOT / "tpu" / "gke.yaml").read_text())
    (slices,) = job["spec"]["replicatedJobs"]
    pods = slices["template"]["spec"]
    pod = pods["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    width, height = map(int, topology.split("x"))
    assert pods["completions"] * chips == width * height
    assert "--folder" in container["args"]
