"""KD++'s experiment: the weights by pair, the warm-up, and a run of seconds."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.common.networks import PAIRS
from experiments.ndkd.experiment import AUTHORS, EXPERIMENT, objectives, warmed
from jaxkd.reporting.run import Run

SMALL = EXPERIMENT.presets["small"]


def test_the_distillation_is_warmed_up_from_0_by_epochs():
    config = replace(SMALL, warmup_epochs=4, steps_per_epoch=10)
    weight = warmed(config, 2.0)
    found = [float(weight(step)) for step in (0, 9, 10, 25, 40, 99)]
    assert found == [0, 0, 0.5, 1, 2, 2]
    assert warmed(SMALL, 2.0) == 2.0


def test_pairs_without_stages_have_no_review():
    assert "reviewkd++" not in objectives("mlp", SMALL)
    assert "reviewkd++" in objectives("cnn", SMALL)
    assert PAIRS["cnn"].stages


def test_the_authors_momentum_is_nesterovs():
    params = {"w": np.ones(2, "f4")}
    optimizer = replace(AUTHORS, weight_decay=0.0).build(240, 240)
    state, updates = optimizer.init(params), []
    for _ in range(2):
        update, state = optimizer.update(params, state, params)
        updates.append(float(update["w"][0]))
    # g + 0.9 (0.9 m + g), of a gradient that stays 1.
    np.testing.assert_allclose(updates, [-0.19, -0.271], rtol=1e-5)


@pytest.mark.slow
def test_a_short_run_measures_the_features(tmp_path):
    config = replace(
        SMALL,
        pairs=("mlp",),
        methods=("kd", "kd++", "norm"),
        train_examples=(50,),
        task=replace(SMALL.task, epochs=2),
        teacher_epochs=2,
    )
    found = EXPERIMENT.records(config, [0], Run(tmp_path))
    assert {r.setting for r in found} == {"mlp, 50 images"}
    assert {r.method for r in found} == {*config.methods, "teacher"}
    measured = {r.metric: r.value for r in found if r.method == "kd++"}
    assert -1 <= measured["mean_cosine"] <= 1
    assert measured["mean_norm"] > 0
