"""The experiments on pairs of networks: tiny runs."""

from dataclasses import replace

import pytest

from experiments.dhkd import experiment as dhkd
from experiments.pld import experiment as pld
from experiments.sinkd import experiment as sinkd
from jaxkd.reporting.records import methods, settings
from jaxkd.reporting.run import Run


def tiny(experiment, names, tmp_path):
    """Run two epochs of some of the methods; compiling them all takes a minute."""
    small = experiment.PRESETS["small"]
    config = replace(
        small,
        methods=names,
        train_examples=(20,),
        task=replace(small.task, batch_size=10, epochs=2, evaluate_every=1),
        teacher_epochs=1,
    )
    return experiment.EXPERIMENT.records(config, (0,), Run(tmp_path))


@pytest.mark.slow
def test_a_tiny_run_of_pld(tmp_path):
    records = tiny(pld, ("pld", "listmle"), tmp_path)
    assert settings(records) == ["20 images"]
    assert methods(records, "20 images") == ["teacher", "pld", "listmle"]
    curves = {r.method: len(r.curve) for r in records if r.metric == "last_accuracy"}
    assert curves == {"teacher": 0, "pld": 2, "listmle": 2}


@pytest.mark.slow
def test_a_tiny_run_of_dhkd_records_the_gradients_apart(tmp_path):
    names = "one_head", "dhkd", "dhkd_aligned"
    records = tiny(dhkd, names, tmp_path)
    assert settings(records) == ["20 images", "gradients, 20 images"]
    rows = methods(records, "gradients, 20 images")
    assert rows == [f"{name} {part}" for name in names[:2] for part in dhkd.PARTS]
    cosines = [r.value for r in records if r.metric == "gradient_cosine"]
    assert all(-1 <= value <= 1 for value in cosines)
    # Two heads share no classifier: the second loss has no gradient there.
    assert [r.value for r in records if r.method == "dhkd classifier"] == [0.0]


@pytest.mark.slow
def test_a_tiny_run_of_sinkd_measures_the_distance(tmp_path):
    records = tiny(sinkd, ("sinkd_0.03",), tmp_path)
    found = {(r.method, r.metric): r.value for r in records}
    assert 0 < found["sinkd_0.03", "sinkhorn"] < 2


def test_an_unknown_row_is_refused_before_a_teacher_is_trained(tmp_path):
    with pytest.raises(ValueError, match="unknown method 'pdl': did you mean 'pld'"):
        tiny(pld, ("pdl",), tmp_path)
    assert list(tmp_path.iterdir()) == []
