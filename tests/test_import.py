"""What ``import jaxkd`` costs: a notebook should be ready at once."""

import json
import os
import subprocess
import sys

HEAVY = [
    *("tensorflow", "torch", "matplotlib", "sklearn", "scipy", "pandas", "grain"),
    *("orbax", "tokenizers", "flwr", "tensorflow_datasets", "pyarrow", "PIL", "tyro"),
    # Kernels are few, and most machines have no TPU.
    "jax.experimental.pallas.tpu",
]

PROGRAM = f"""
import json, sys, time
import jax
start = time.process_time()
import jaxkd
seconds = time.process_time() - start
loaded = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([seconds, jaxkd.__version__, loaded]))
"""


def test_import_is_light(record_property):
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, version, loaded = json.loads(done.stdout)
    record_property("seconds beyond jax", seconds)
    assert loaded == []
    assert version
    # Meant to be below 2; Python may have to compile every file of flax here.
    assert seconds < 10


def test_another_package_of_the_name_is_named(tmp_path):
    foreign = tmp_path / "jaxkd-0.4.0.dist-info"
    foreign.mkdir()
    (foreign / "METADATA").write_text("Name: jaxkd\nVersion: 0.4.0\n")
    found = subprocess.run(
        [sys.executable, "-c", "import jaxkd"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", str(tmp_path)])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    assert "ImportError: the package jaxkd of the Python index" in found.stderr
    assert "pip uninstall jaxkd jaxkd-distill" in found.stderr
