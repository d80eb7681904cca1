"""The experiments in which a BERT teaches a smaller one."""

from dataclasses import replace

import jax
import pytest

from experiments.common import text_classification
from experiments.sst2.experiment import PRESETS
from jaxkd import data
from jaxkd.reporting.experiment import load_experiment
from jaxkd.reporting.run import Run

GOOD, BAD = "a good film , truly good", "a bad film , truly bad"


@pytest.mark.parametrize("slug", ["sst2", "sinkd"])
def test_full_scale_has_berts_sizes(slug):
    experiment = load_experiment(slug)
    config = experiment.preset("paper")
    ((program, batch),) = experiment.full_scale(config).values()
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    _, metrics = jax.eval_shape(program.step, state, batch)
    assert metrics["loss"].shape == ()
    for tree, millions in ((state.teacher, 109.1), (state.student, 66.6)):
        found = sum(x.size for x in jax.tree.leaves(tree["params"]))
        assert found == pytest.approx(millions * 1e6, rel=0.01)
    assert batch["input_ids"].shape == (32, 128)


def test_word_pieces_are_berts():
    tokenizer = text_classification.word_pieces([GOOD, BAD] * 9, 40)
    tokens, types = tokenizer.classifier_tokens("good film", "bad", 16)
    assert tokens[0] == 2
    assert tokens.count(3) == 2
    assert types == sorted(types)
    assert tokenizer.decode(tokenizer.encode("Good film")) == "good film"


@pytest.mark.slow
def test_sentences_in_seconds(tmp_path, monkeypatch):
    def toy(tokenizer, lengths):
        parts = (
            data.label_texts(
                name, [GOOD, BAD] * n, [1, 0] * n, tokenizer, classes=2, lengths=lengths
            )
            for name, n in (("toy/train", 16), ("toy/test", 4))
        )
        return data.Dataset(*parts)

    monkeypatch.setattr(text_classification.data, "sst2", toy)
    monkeypatch.setattr(text_classification, "sentences", lambda: [GOOD, BAD] * 9)
    tiny = {"width": 32, "layers": 1, "heads": 2, "hidden": 32}
    monkeypatch.setitem(text_classification.SIZES, "toy", tiny)
    small = PRESETS["small"]
    config = replace(
        small,
        methods=("relations",),
        teacher="toy",
        student="toy",
        vocabulary=40,
        lengths=(16,),
        train_examples=24,
        epochs=40,
        teacher_epochs=15,
        batch_size=8,
        optimizer=replace(small.optimizer, learning_rate=5e-3),
    )
    records = load_experiment("sst2").records(config, [0], Run(tmp_path))
    found = {(r.method, r.metric): r.value for r in records}
    for method in ("teacher", "relations"):
        assert found[method, "last_accuracy"] == 1
    assert found["relations", "teacher_kl"] >= 0
