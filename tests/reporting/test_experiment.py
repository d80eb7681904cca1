"""The parts of a run survive a stop; a damaged one is named."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest
from damage import damaged

from jaxkd import Network
from jaxkd.digests import write_json
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, Clock, Run, Task, read_part
from jaxkd.types import Program

RECORDS = [Record("kd", 0, "nll", 0.25, 1.5, "mlp", (0.5, 0.25))]


def test_a_finished_part_is_read_and_not_computed_again(tmp_path):
    run = Run(tmp_path)
    assert run.part("mlp/kd", lambda folder: RECORDS) == RECORDS
    assert run.part("mlp/kd", lambda folder: pytest.fail("computed")) == RECORDS


def test_a_part_that_was_stopped_is_computed_again(tmp_path):
    run = Run(tmp_path)

    def stop(folder):
        (folder / "checkpoint").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.part("kd", stop)
    assert run.part("kd", lambda folder: RECORDS) == RECORDS
    assert (tmp_path / "kd" / "checkpoint").exists()


@pytest.mark.parametrize(
    "content", ["", '[{"method": "kd"', "7", "[7]", '[{"method": "kd"}]', '{"a": 1}']
)
def test_damaged_records_are_named_with_the_remedy(tmp_path, content):
    run = Run(tmp_path)
    run.part("kd", lambda folder: RECORDS)
    (tmp_path / "kd" / "records.json").write_text(content)
    with pytest.raises(ValueError, match=r"kd/records\.json is half.* delete it, and"):
        run.part("kd", lambda folder: RECORDS)


def test_no_damaged_part_or_time_is_read(tmp_path):
    run = Run(tmp_path)
    run.part("kd", lambda folder: RECORDS)
    write_json(tmp_path / "kd" / "seconds.txt", {"seconds": 1000.0}, indent=None)
    for what in damaged(tmp_path):
        with contextlib.suppress(ValueError):
            assert read_part(tmp_path / "kd") == RECORDS, what
        with contextlib.suppress(ValueError):
            assert Clock(tmp_path / "kd").seconds == pytest.approx(1000, abs=0.5), what
    (tmp_path / "kd" / "seconds.txt").write_text("no number")
    with pytest.raises(ValueError, match=r"seconds\.txt is damaged .*: delete it, and"):
        Clock(tmp_path / "kd")


def test_a_teachers_training_is_in_its_rows_time_once(tmp_path):
    network = Network.from_apply(
        lambda key: {"w": jnp.zeros(2)}, lambda params, x: x * params["w"], reads=("x",)
    )
    program = Program(
        lambda key, batch: network.init(key),
        lambda state, batch: (state, {"loss": jnp.zeros(())}),
    )
    task = Task(
        "table",
        lambda seed: [{"x": np.zeros((1, 2))}],
        1,
        lambda _: lambda _: {"nll": 1.0},
    )
    # As after a stop, 1000 seconds into the training.
    clock = tmp_path / "table" / "teacher" / "seed0" / "training" / "seconds.txt"
    clock.parent.mkdir(parents=True)
    clock.write_text("1000")
    run = Run(tmp_path)
    arm = Arm("teacher", program, network, variables=lambda state: state)
    (record,) = run.train(run.teacher(arm, task), task, [0])
    assert (record.metric, record.value) == ("nll", 1)
    assert 1000 < record.wall_time < 1900
