"""A Llama teaches a smaller one: three experiments at full scale and in seconds."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.common import language_models
from experiments.common.corpus import Corpus, CorpusConfig
from experiments.language import experiment as language
from experiments.llm_kd_survey import experiment as survey
from experiments.taid import experiment as taid
from jaxkd import data
from jaxkd.kernels.quant_matmul import QuantizedWeights
from jaxkd.reporting.run import Run
from jaxkd.training import MESHES

TINY = {"width": 8, "layers": 1, "heads": 2, "hidden": 8}


def parameters(tree) -> int:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, QuantizedWeights))
    return sum(getattr(leaf, "codes", leaf).size for leaf in leaves)


@pytest.mark.parametrize(
    ("experiment", "preset", "teacher", "student"),
    [
        (language, "paper", 8.03, 1.236),
        (language, "paper_int8", 8.03, 1.236),
        (language, "paper_70b", 70.6, 1.236),
        (taid, "paper", 3.82, 1.10),
        (survey, "paper", 1.655, 0.162),
    ],
)
def test_full_scale_has_the_papers_sizes(experiment, preset, teacher, student):
    config = experiment.PRESETS[preset]
    program, batch = next(iter(experiment.EXPERIMENT.full_scale(config).values()))
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    for tree, billions in ((state.teacher, teacher), (state.student, student)):
        assert parameters(tree["params"]) == pytest.approx(billions * 1e9, rel=5e-3)
    dtypes = {x.dtype.name for x in jax.tree.leaves(state.teacher)}
    assert dtypes == {"bfloat16"} | ({"int8"} if preset == "paper_int8" else set())
    assert {x.dtype.name for x in jax.tree.leaves(state.student)} == {"float32"}
    corpus = config.corpus
    assert batch["input_ids"].shape == (corpus.batch_size, corpus.length)


def test_the_slice_has_its_mesh():
    shape, chips = MESHES[language.EXPERIMENT.mesh], 16 * 16
    assert language.EXPERIMENT.topology.endswith("16x16")
    assert shape.data * shape.fsdp * shape.tensor == chips


def short_run(experiment, methods, tmp_path, monkeypatch, **changes):
    """Return (method, metric) -> value of a run of seconds on random tokens."""
    tokens = np.random.default_rng(0).integers(0, 11, 2000).astype("u1")
    windows = tuple(data.Windows("toy", x, 8, 11) for x in (tokens, tokens[:200]))
    monkeypatch.setattr(CorpusConfig, "load", lambda _: Corpus(*windows, 16))
    monkeypatch.setitem(language_models.SIZES, "tiny", TINY)
    small = experiment.PRESETS["small"]
    config = replace(
        small,
        corpus=CorpusConfig(length=8),
        optimizer=replace(small.optimizer, warmup=1),
        teacher="tiny",
        student="tiny",
        teacher_steps=3,
        steps=5,
        prompt=4,
        methods=methods,
        **changes,
    )
    records = experiment.EXPERIMENT.records(config, [0], Run(tmp_path))
    found = {(r.method, r.metric): r.value for r in records}
    assert {method for method, _ in found} == {"teacher", *methods}
    for method in methods:
        assert 0 < found[method, "nll"] < 2 * np.log(11)
        assert found[method, "teacher_kl"] >= 0
        assert 0 <= found[method, "agreement"] <= 1
    return found


@pytest.mark.slow
def test_words_and_sampled_texts(tmp_path, monkeypatch):
    methods = ("cross_entropy", "forward_kl", "logits_kl", "gkd")
    found = short_run(language, methods, tmp_path, monkeypatch, teacher_bits="int8")
    assert found["logits_kl", "nll"] == pytest.approx(found["forward_kl", "nll"])
    assert found["gkd", "nll"] != found["cross_entropy", "nll"]


@pytest.mark.slow
def test_students_that_begin_from_the_text(tmp_path, monkeypatch):
    found = short_run(language, ("minillm",), tmp_path, monkeypatch, start_steps=2)
    assert found["minillm", "reverse_teacher_kl"] >= 0
    started = tmp_path / "start" / "seed1000" / "training"
    assert (started / "checkpoints" / "2").is_dir()


@pytest.mark.slow
def test_taid_with_and_without_logits(tmp_path, monkeypatch):
    found = short_run(taid, ("taid_0.4", "taid_heads"), tmp_path, monkeypatch)
    assert found["taid_0.4", "nll"] == pytest.approx(found["taid_heads", "nll"])
    assert found["taid_0.4", "target_nearer"] > 0
    assert ("taid_heads", "target_nearer") not in found


def test_unknown_methods_and_absent_text_are_said(tmp_path):
    wrong = replace(language.PRESETS["small"], methods=("forward",))
    with pytest.raises(ValueError, match="unknown method 'forward'"):
        language.EXPERIMENT.records(wrong, [0], Run(tmp_path))
    with pytest.raises(FileNotFoundError, match="llama3_tokens"):
        language.EXPERIMENT.records(language.PRESETS["paper"], [0], Run(tmp_path))
