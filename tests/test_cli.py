"""The command line, from a run to a report, a resumed run and an exported student."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import data, interop, models
from jaxkd.cli import main
from jaxkd.reporting import experiment
from jaxkd.reporting.experiment import (
    PACKAGED,
    experiments_folder,
    load_experiment,
    slugs,
)
from jaxkd.reporting.results import read_results


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run two methods for two epochs with two seeds."""
    folder = tmp_path_factory.mktemp("cli")
    arguments = "run baselines --preset small --seeds 2 --task.epochs 2"
    arguments += " --teacher-epochs 1 --methods cross_entropy mlp/kd"
    arguments += f" --folder {folder}/run"
    assert main(arguments.split()) == 0
    return folder


@pytest.mark.slow
def test_run_writes_results_report_and_students(finished, capsys):
    results = read_results(finished / "run" / "results.json")
    assert results.config["task"]["epochs"] == 2
    rows = {(r.setting, r.method, r.seed) for r in results.records}
    assert rows == {
        ("mlp", "teacher", 0),
        ("cnn", "teacher", 0),
        *(("mlp", m, s) for m in ("cross_entropy", "kd") for s in (0, 1)),
        *(("cnn", "cross_entropy", s) for s in (0, 1)),
    }
    assert (
        main(["report", "baselines", "--results", f"{finished}/run/results.json"]) == 0
    )
    printed = capsys.readouterr().out
    assert "±" in printed
    assert "NOT ESTABLISHED" in printed
    for folder in (finished / "run", finished / "run" / "results"):
        assert "data:image/png;base64" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_markdown_goes_to_standard_output_and_nothing_is_written(
    finished, tmp_path, capsys
):
    copy = tmp_path / "results.json"
    copy.write_bytes((finished / "run" / "results.json").read_bytes())
    assert main(["report", "baselines", "--results", str(copy), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "**mlp**" in lines
    rows = [line for line in lines if line.startswith("| kd | ")]
    assert len(rows) == 1
    assert "±" in rows[0]
    claims = lines[lines.index("| claim | verdict | numbers |") + 2 :]
    assert any(line.startswith("| kd above cross_entropy") for line in claims)
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.slow
def test_resume_repeats_only_what_is_missing(finished):
    first = read_results(finished / "run" / "results.json")
    before = first.records
    part = finished / "run" / "mlp" / "kd" / "seed1"
    kept = finished / "run" / "mlp" / "kd" / "seed0" / "records.json"
    (part / "records.json").unlink()
    times = kept.stat().st_mtime_ns
    assert main(["resume", f"{finished}/run"]) == 0
    assert kept.stat().st_mtime_ns == times
    second = read_results(finished / "run" / "results.json")
    after = second.records
    assert second.seconds > first.seconds

    def numbers(records):
        return [(r.setting, r.method, r.seed, r.metric, r.value) for r in records]

    assert numbers(after) == numbers(before)


@pytest.mark.slow
def test_export_gives_a_folder_and_a_portable_program(finished, tmp_path):
    to = tmp_path / "student"
    command = ["export", f"{finished}/run", "--to", str(to), "--part", "mlp/kd/seed0"]
    assert main(command) == 0
    network, variables = interop.load_pretrained(to)
    images = jnp.asarray(data.digits().test.arrays["image"][:7])
    expected = network.apply(variables, images)[0].logits
    program = jax.export.deserialize((to / "model.stablehlo").read_bytes())
    np.testing.assert_allclose(program.call(images), expected, rtol=1e-5, atol=1e-6)
    assert main(command) == 1


def test_a_network_of_text_is_exported_without_a_program(tmp_path):
    network = models.gpt2(8, 4, 8, 1, 2)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    student = tmp_path / "run" / "kd" / "student"
    interop.save_pretrained(student, network, variables)
    to = tmp_path / "to"
    assert main(["export", f"{tmp_path}/run", "--to", str(to), "--part", "kd"]) == 0
    assert interop.load_pretrained(to)[0].spec is not None
    names = ["SHA256SUMS", "config.json", "model.safetensors"]
    assert sorted(p.name for p in to.iterdir()) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("shwo baselines", "did you mean 'show'"),
        ("show baseline", "did you mean 'baselines'"),
        ("run baselines --preset smal", "did you mean 'small'"),
        ("run baselines --seeds 0", "--seeds must be at least 1"),
        (
            "run baselines --task.dataset digit --folder {tmp}/a",
            "did you mean 'digits'",
        ),
        ("run baselines --methods kdd --folder {tmp}/b", "'kdd'"),
        (
            "run baselines --task.epochs 2 --commit-results",
            "for preset 'small' as it is",
        ),
        ("run baselines --folder {tmp}", "exists: go on with it by `jaxkd resume"),
        (
            "run baselines --task.dataset mnist --folder {tmp}/c",
            "JAXKD_DATA is not set",
        ),
        ("report baselines --results {tmp}/none.json", "none.json"),
        ("resume {tmp}", "not the folder of a run"),
        ("export {tmp} --to {tmp}/x", "no trained student"),
    ],
)
def test_mistakes_get_one_line_with_the_remedy(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("JAXKD_DATA", raising=False)
    assert main(arguments.format(tmp=tmp_path).split()) == 1
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"experiment": "baselines"}', "with a field"]
)
def test_a_damaged_run_file_is_named(content, finished, tmp_path, capsys):
    if content == "with a field":
        saved = json.loads((finished / "run" / "run.json").read_text())
        saved["config"]["gone"] = 1
        content = json.dumps(saved)
    (tmp_path / "run.json").write_text(content)
    assert main(["resume", str(tmp_path)]) == 1
    found = capsys.readouterr().err.replace("\n", " ")
    assert f"{tmp_path}/run.json is damaged or of another version" in found
    assert "start again with `jaxkd run`" in found


def test_a_results_file_cannot_send_its_report_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    committed = load_experiment("pld").committed("small")
    found = json.loads(committed.read_text()) | {"preset": "../../elsewhere"}
    found.pop("sha256", None)
    mine = tmp_path / "deep" / "er" / "mine.json"
    mine.parent.mkdir(parents=True)
    mine.write_text(json.dumps(found))
    assert main(["report", "pld", "--results", str(mine)]) == 0
    assert (mine.parent / "mine" / "report.html").is_file()
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    assert sorted(p.name for p in mine.parent.iterdir()) == ["mine", "mine.json"]


def test_a_report_of_committed_results_goes_to_the_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "pld"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "pld-small-report"


@pytest.mark.slow
def test_an_installed_package_has_its_experiments(tmp_path, monkeypatch, capsys):
    packaged = tmp_path / "site" / PACKAGED
    copied = packaged / "experiments"
    for name in ("common", "pld"):
        files = shutil.ignore_patterns("results", "__pycache__")
        shutil.copytree(experiments_folder() / name, copied / name, ignore=files)
    (tmp_path / "experiments").mkdir()  # somebody's own, of another kind
    monkeypatch.chdir(tmp_path)
    installed = tmp_path / "site" / "jaxkd" / "reporting" / "experiment.py"
    monkeypatch.setattr(experiment, "__file__", str(installed))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("experiments")]:
        monkeypatch.delitem(sys.modules, name)
    assert slugs() == ["pld"]
    assert main(["show", "pld"]) == 0
    assert Path(sys.modules["experiments.pld.experiment"].__file__) == (
        copied / "pld" / "experiment.py"
    )
    capsys.readouterr()
    for command, why in {
        "report pld": "no committed results of pld, preset small (an installed",
        "report pld --commit-results": "no committed results of pld",
        "run pld --commit-results": "--commit-results writes to the repository",
        "compile pld --commit-results": "--commit-results writes to the repository",
    }.items():
        assert main(command.split()) == 1
        assert why in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.glob("runs/*")) == []


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxkd {jaxkd.__version__}\n"


def test_list_and_show(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(
        name in listed for name in ("baselines", "reviewkd", "digits", "one_cnn")
    )
    assert main(["show", "baselines"]) == 0
    shown = capsys.readouterr().out
    assert "train_examples" in shown
    assert "kd above cross_entropy" in shown


@pytest.mark.parametrize("arguments", [["--help"], [], ["run", "baselines", "--help"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert ("--train-examples" if "run" in arguments else "resume") in shown
