"""Metric files: complete, read back, and cut where a run resumes."""

import builtins
import json

import jax
import numpy as np
import optax
import pytest

from jaxkd import distill, methods, models
from jaxkd.data import Source, batches
from jaxkd.training import Checkpoints, Csv, JsonLines, TensorBoard, fit

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(20, 4, 4, 1)).astype("f4"),
        "label": rng.integers(0, 3, 20).astype("i4"),
    }
    data = batches(Source("toy", arrays, 3), 4, epochs=2)
    student = models.mlp(16, (4,), 3)
    program = distill(student, None, methods.cross_entropy(), optax.sgd(0.1))

    def run(writers, **options):
        norm = lambda state: {"norm": optax.tree.norm(state.student)}  # noqa: E731
        return fit(
            program,
            data,
            key=KEY,
            evaluate=norm,
            evaluate_every=4,
            log_every=2,
            writers=writers,
            **options,
        )

    return run


def test_json_lines_hold_every_look_and_evaluation(run, tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    _, history = run([JsonLines(path)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "norm" in line]
    assert [line["step"] for line in trained] == [2, 4, 6, 8, 10]
    assert [line["step"] for line in evaluated] == [4, 8, 10]
    assert set(trained[0]) == {"step", "loss", "grad_norm", "cross_entropy"}
    assert [line["norm"] for line in evaluated] == [e["norm"] for e in history]
    assert trained[-1]["loss"] == history[-1]["train_loss"]


def test_csv_holds_a_value_a_row(run, tmp_path):
    path = tmp_path / "metrics.csv"
    run([Csv(path), JsonLines(tmp_path / "metrics.jsonl")])
    header, *rows = path.read_text().splitlines()
    assert header == "step,metric,value"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = [
        f"{line['step']},{name},{value}"
        for line in map(json.loads, lines)
        for name, value in line.items()
        if name != "step"
    ]
    assert rows == expected


@pytest.mark.slow
@pytest.mark.parametrize("writer", [JsonLines, Csv])
def test_a_resumed_runs_file_is_that_of_an_uninterrupted_one(run, tmp_path, writer):
    run([writer(tmp_path / "whole")])
    path = tmp_path / "resumed"
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        run([writer(path)], steps=4, checkpoints=checkpoints)
    # Steps beyond the checkpoint, the last cut off in the middle of its line.
    whole = (tmp_path / "whole").read_text()
    path.write_text(whole[: len(whole) * 4 // 5])
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        run([writer(path)], checkpoints=checkpoints)
    assert path.read_text() == whole
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("writer", [JsonLines, Csv])
def test_a_spoilt_line_is_named_and_the_file_left_alone(tmp_path, writer):
    path = tmp_path / "metrics"
    path.write_text("nonsense\n")
    with pytest.raises(ValueError, match=rf"{path}, line 1 cannot.*nonsense.*Move the"):
        writer(path).start(0)
    assert path.read_text() == "nonsense\n"


def test_tensorboard(run, tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    _, history = run([TensorBoard(tmp_path)])
    (file,) = tmp_path.iterdir()
    content, found = file.read_bytes(), {}
    while content:
        # Length (8 bytes), its checksum (4), an event, its checksum (4).
        length = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            found[event.step, value.tag] = value.simple_value
        content = content[16 + length :]
    assert {step for step, _ in found} == {2, 4, 6, 8, 10}
    for entry in history:
        assert found[entry["step"], "norm"] == pytest.approx(entry["norm"], rel=1e-6)
        assert found[entry["step"], "loss"] == pytest.approx(entry["train_loss"])


def test_tensorboard_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=r"pip install 'jaxkd-distill\[tensorboard\]'"
    ):
        TensorBoard(tmp_path)
