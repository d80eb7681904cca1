"""The parts of a run survive a stop; a damaged one is named."""

import pytest

from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record

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
