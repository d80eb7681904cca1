"""SwiftKV's experiment: full scale as the paper has it, and a run of seconds."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.common import language_models
from experiments.common.corpus import Corpus, CorpusConfig
from experiments.swiftkv import experiment as swiftkv
from jaxkd import data
from jaxkd.reporting.run import Run


@pytest.mark.slow
def test_a_run_of_seconds_measures_its_rows(tmp_path, monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 11, 2000).astype("u1")
    windows = tuple(data.Windows("toy", x, 8, 11) for x in (tokens, tokens[:200]))
    monkeypatch.setattr(CorpusConfig, "load", lambda _: Corpus(*windows, 16))
    tiny = {"width": 8, "layers": 6, "heads": 2, "hidden": 8}
    monkeypatch.setitem(language_models.SIZES, "tiny", tiny)
    names = ("untrained_l3", "kd_l3_g3")
    config = replace(
        swiftkv.PRESETS["small"], size="tiny", arms=names, teacher_steps=2, steps=3
    )
    records = swiftkv.EXPERIMENT.records(config, [0], Run(tmp_path))
    found = {(r.method, r.metric): r.value for r in records}
    assert {method for method, _ in found} == {"teacher", *names}
    for name in names:
        gap = found[name, "nll"] - found["teacher", "nll"]
        assert found[name, "nll_gap"] == pytest.approx(gap)
        assert found[name, "stage_error"] < 1e-5
        assert found[name, "chunk_error"] < 1e-5
    assert found["kd_l3_g3", "frozen_change"] == 0
    assert ("untrained_l3", "frozen_change") not in found


def test_rows_train_what_they_are_named_after():
    config = replace(swiftkv.PRESETS["small"], arms=("full_kd_l3", "labels_l3"))
    config = replace(config, corpus=replace(config.corpus, vocabulary=11))
    full, labels = (
        jax.eval_shape(program.init, jax.random.key(0), batch)
        for program, batch in swiftkv.full_scale(config).values()
    )
    assert not jax.tree.leaves(full.student["stats"])
    assert jax.tree.leaves(labels.student["stats"])
    assert jax.tree.leaves(full.teacher)
    assert not jax.tree.leaves(labels.teacher)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "trained", "layers"), [("paper", 0.403, 16), ("paper_70b", 3.36, 40)]
)
def test_full_scale_trains_only_queries_keys_and_values(preset, trained, layers):
    config = swiftkv.PRESETS[preset]
    program, batch = next(iter(swiftkv.full_scale(config).values()))
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    size = sum(x.size for x in jax.tree.leaves(state.student["params"]))
    shape = language_models.SIZES[config.size]
    width, heads = shape["width"], shape["heads"] * 128
    expected = layers * width * (heads + 2 * 8 * 128) + width
    assert size == expected
    assert size == pytest.approx(trained * 1e9, rel=0.01)
    assert {x.dtype.name for x in jax.tree.leaves(state.student["stats"])} == {
        "bfloat16"
    }
    assert batch["input_ids"].shape == (config.corpus.batch_size, 8192)


@pytest.mark.slow
def test_served_caches_are_as_small_as_the_paper_says():
    config = swiftkv.PRESETS["serve"]
    config = replace(config, corpus=replace(config.corpus, batch_size=1))
    programs = swiftkv.full_scale(config)

    def cache_bytes(name):
        program, batch = programs[f"llama3.1-8b {name} prefill"]
        state = jax.eval_shape(program.init, jax.random.key(0), batch)
        cache = state["cache"]
        return cache.key.dtype.itemsize * (cache.key.size + cache.value.size)

    full = cache_bytes("llama")
    assert full == 2 * 32 * (8192 + config.room) * 8 * 128 * 2
    assert cache_bytes("l16") == full
    assert cache_bytes("l16_g2") == 0.75 * full
    assert cache_bytes("l16_g2 fp8") == 0.375 * full
