"""FIRST's experiment: the protocol, a tiny run, and the paper's step and data."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.first import answers, digits
from experiments.first.experiment import EXPERIMENT
from jaxkd import Network, data, teachers
from jaxkd.reporting.records import methods, select
from jaxkd.reporting.run import Run


def test_images_are_noisy_the_same_way_and_in_one_part_each():
    config = digits.Config()
    split = digits.noisy_digits(config, 3)
    assert [len(part) for part in split.values()] == [898, 300, 599]
    again = digits.noisy_digits(config, 3)
    assert (split["test"].arrays["image"] == again["test"].arrays["image"]).all()
    rows = np.concatenate([p.arrays["image"].reshape(-1, 64) for p in split.values()])
    assert len(np.unique(rows, axis=0)) == 1797
    other = digits.noisy_digits(config, 4)
    assert not (split["test"].arrays["image"] == other["test"].arrays["image"]).all()


@pytest.mark.slow
def test_a_tiny_run(tmp_path):
    config = replace(digits.Config(), epochs=1, teacher=16, student=8)
    records = EXPERIMENT.records(config, (0,), Run(tmp_path))
    rows = ["teacher", "sft", "direct", "smoothed", "first_log", "first_probability"]
    assert methods(records) == rows
    # Five bytes and five halves against ten floats.
    sizes = [r.value for r in records if r.metric == "bytes"]
    assert sizes == [15, 40]
    for row in rows[-2:]:
        assert select(records, row, "kept_best")[0].value == 1
    accuracy, trust, error = (
        select(records, "sft", metric)[0].value
        for metric in ("last_accuracy", "trust", "ece10")
    )
    assert accuracy - error == pytest.approx(trust, abs=1e-6)


def test_full_scale_has_the_students_size():
    ((program, batch),) = answers.full_scale(answers.Config()).values()
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    # 1,836,828,672 parameters, as Hugging Face counts them.
    sizes = [x.size for x in jax.tree.leaves(state.student["params"])]
    assert sum(sizes) == 1_836_828_672


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """Tiny answers with the cache of a table of bigrams, below JAXKD_DATA."""
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    table = np.random.default_rng(0).normal(0, 3, (259, 259)).astype("f4")
    teacher = Network.from_apply(
        lambda key: {"table": jnp.asarray(table)},
        lambda params, ids: params["table"][ids],
        reads=("input_ids",),
    )
    documents = data.tokenize("a", ["to be", "or not to be"] * 4, data.ByteTokenizer())
    for split in ("train", "validation"):
        documents.save(tmp_path / "first" / split)
        teachers.write_teacher_cache(
            tmp_path / "first" / f"{split}_cache",
            data.pack(documents, 16),
            teachers.network_targets(teacher, teacher.init(jax.random.key(0)), k=5),
            batch_size=2,
            shard_examples=2,
        )
    return teacher


def test_the_paper_s_data_are_read_from_a_cache(answered):
    config = answers.Config(length=16)
    source = answers.cached(config, "validation")
    assert source.take(np.arange(2))["teacher_ids"].shape == (2, 16, 5)
    assert 0 < answers.found_temperature(config, source) <= 1
    measure = answers.reliability(answered, source, 2)
    found = measure(answered.init(jax.random.key(0)))
    assert found["trust"] == pytest.approx(found["last_accuracy"] - found["ece10"])


def test_absent_data_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"first/train/documents.json is missing"
    ):
        EXPERIMENT.records(answers.Config(), (0,), Run(tmp_path / "run"))
