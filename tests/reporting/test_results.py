"""Results files: what is written is read back; a bad file is refused with a remedy."""

import contextlib
import dataclasses
import json
import math
import resource
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pytest
from damage import TRIALS, damaged

from jaxkd.reporting import results as module
from jaxkd.reporting.records import Record
from jaxkd.reporting.results import git_state, read_results, write_results


@dataclass(frozen=True)
class Config:
    epochs: int = 3
    methods: tuple[str, ...] = ("kd", "at")
    rate: float | None = None


RECORDS = [
    Record("kd", 0, "last_accuracy", 0.1 + 0.2, 1.5, "mlp", (0.123456789, 1e-7 / 3)),
    Record("kd", 1, "last_accuracy", float(np.float64(0.25)), 2.5, "mlp"),
    Record("蒸留 <b>", 0, "nll", -1e300, 0.0),
]


def write(path, records=RECORDS):
    write_results(
        path,
        experiment="baselines",
        preset="small",
        config=Config(),
        records=records,
        seconds=12.0,
        code=("0" * 40, False),
    )
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "baselines" / "results" / "small.json")


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_round_trip(path):
    found = read_results(path)
    assert found.records == [
        dataclasses.replace(RECORDS[0], curve=(0.12346, 3.3333e-8)),
        *RECORDS[1:],
    ]
    assert (found.experiment, found.preset, found.seconds) == ("baselines", "small", 12)
    assert found.config == {"epochs": 3, "methods": ["kd", "at"], "rate": None}
    assert found.versions["numpy"] == np.__version__
    assert found.versions["python"] == sys.version.split()[0]
    assert set(module.PACKAGES) < set(found.versions)
    assert found.machine["device"]
    assert found.machine["cores"] >= 1
    assert datetime.fromisoformat(found.date).utcoffset().total_seconds() == 0


def test_one_line_a_record_and_nothing_left_beside_it(path):
    lines = [line for line in path.read_text().splitlines() if '"method"' in line]
    assert len(lines) == len(RECORDS)
    assert [p.name for p in path.parent.iterdir()] == ["small.json"]


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(path):
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match=r"small\.json cannot .* `jaxkd resume`"):
            write(path, RECORDS[:1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["small.json"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_stop_while_writing_leaves_the_old_file(path, monkeypatch, moment):
    before = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, moment, stop)
    with pytest.raises(KeyboardInterrupt):
        write(path, RECORDS[:1])
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["small.json"]


def test_a_place_that_cannot_be_written_is_named(path):
    with pytest.raises(OSError, match=r"small\.json/x\.json cannot be written"):
        write(path / "x.json")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_run_is_not_written(tmp_path, value):
    bad = Record("kd", 3, "nll", value, 1.0, "cnn")
    with pytest.raises(ValueError, match=f"nll of kd, seed 3, in cnn holds {value}"):
        write(tmp_path / "x.json", [*RECORDS, bad])
    assert list(tmp_path.iterdir()) == []


def test_the_same_measurement_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seed 1, in mlp is there twice"):
        write(tmp_path / "x.json", [*RECORDS, RECORDS[1]])


def test_nothing_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="records is empty"):
        write(tmp_path / "x.json", [])


def test_a_missing_file_says_how_to_make_it(tmp_path):
    path = tmp_path / "crd" / "results" / "demo.json"
    with pytest.raises(FileNotFoundError, match=r"`jaxkd run crd --preset demo --com"):
        read_results(path)
    with pytest.raises(FileNotFoundError, match=r"jaxkd run EXPERIMENT .*PRESET"):
        read_results(tmp_path / "elsewhere.json")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_half_written_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"small\.json is half-written or corrupt"):
        read_results(path)


def test_a_file_that_is_no_text_is_refused(path):
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match="half-written or corrupt"):
        read_results(path)


def test_a_file_of_something_else_is_refused(path):
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds a list, not an object"):
        read_results(path)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(path, schema):
    edited(path, lambda content: content.update(schema=schema))
    with pytest.raises(ValueError, match=f"has schema {schema!r}, but .* schema 1"):
        read_results(path)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(module.Results)])
def test_a_missing_field_is_named(path, name):
    edited(path, lambda content: content.pop(name))
    with pytest.raises(ValueError, match=f"lacks the field {name}: make it with"):
        read_results(path)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Record)])
def test_a_missing_field_of_a_record_is_named(path, name):
    edited(path, lambda content: content["records"][1].pop(name))
    with pytest.raises(ValueError, match=f"record 1 of .* lacks the field {name}"):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"value": None}, "value = None, which is not a finite number"),
        ({"value": "0.9"}, "value = '0.9', which is not a finite number"),
        ({"value": True}, "value = True, which is not a finite number"),
        ({"value": 10**400}, "value = 10+, which is not a finite number"),
        ({"seed": 1.5}, "seed = 1.5, which is not an integer"),
        ({"seed": True}, "seed = True, which is not an integer"),
        ({"method": 3}, "method = 3, which is not text"),
        ({"curve": [0.1, None]}, "which is not a list of finite numbers"),
        ({"curve": 0.1}, "which is not a list of finite numbers"),
        ({"extra": 1}, "has an unknown field extra"),
    ],
)
def test_a_wrong_field_of_a_record_is_named(path, change, problem):
    edited(path, lambda content: content["records"][1].update(change))
    with pytest.raises(ValueError, match=f"record 1 of .*{problem}.*make it with"):
        read_results(path)


def test_a_record_that_is_no_object_is_named(path):
    edited(path, lambda content: content["records"].insert(0, 7))
    with pytest.raises(ValueError, match=r"record 0 of .* is 7, not an object"):
        read_results(path)


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_value_that_is_not_finite_is_refused(path, token):
    path.write_text(path.read_text().replace('"value": 0.25', f'"value": {token}'))
    with pytest.raises(ValueError, match=r"small\.json.* not .*finite.*make it with"):
        read_results(path)


def test_a_configuration_that_is_not_finite_is_refused(path):
    path.write_text(path.read_text().replace('"rate": null', '"rate": NaN'))
    with pytest.raises(ValueError, match=r"holds NaN, a value that is not finite"):
        read_results(path)


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_the_commit_and_whether_files_differ_from_it(tmp_path):
    assert git_state(tmp_path) == (None, False)
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == (None, False)
    code = tmp_path / "package" / "code.py"
    code.parent.mkdir()
    code.write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit, dirty = git_state(code.parent)
    assert len(commit) == 40
    assert not dirty
    write(tmp_path / "experiments" / "x" / "results" / "small.json")
    assert git_state(code.parent) == (commit, False)
    code.write_text("2")
    assert git_state(code.parent) == (commit, True)


def test_a_machine_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == (None, False)


@pytest.mark.slow
def test_matplotlib_is_not_imported():
    names = "records, claims, results, tables, report"
    program = (
        f"from jaxkd.reporting import {names}; import sys; "
        "sys.exit('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_no_damaged_file_is_read(path):
    right, read = read_results(path), []
    for what in damaged(path.parent):
        with contextlib.suppress(ValueError):
            read.append((what, read_results(path)))
    # Spaces, and names of fields that nobody needs, carry nothing.
    assert [what for what, found in read if found != right] == []
    assert len(read) < TRIALS / 8
    # However it is laid out, as long as it says the same.
    edited(path, lambda content: None)
    assert read_results(path) == right
    # As it was written before there were digests.
    edited(path, lambda content: content.pop("sha256"))
    assert read_results(path) == right
    edited(path, lambda content: content.update(sha256="0" * 64))
    with pytest.raises(ValueError, match=r"corrupt \(its sha256 .*delete that field"):
        read_results(path)
