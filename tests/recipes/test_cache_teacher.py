"""The command that caches a teacher, from a folder of weights to a trained student."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxkd import data, distill, interop, methods, teachers, training
from jaxkd import models as zoo
from jaxkd.cli import main

WORDS = ["to", "be", "or", "not", "that", "is", "the", "question", "[UNK]"]
TEXT = "to be or not to be\nthat is the question\nthe question is not to be\n"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with a Llama of nine words and its tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    network = zoo.llama(12, 8, 1, 2, 16)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
    interop.save_pretrained(folder, network, jax.tree.map(jnp.asarray, variables))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text(TEXT)
    return path


def command(teacher, texts, to, *options):
    arguments = ["cache-teacher", str(teacher), str(texts), "--to", str(to)]
    arguments += ["--length", "6", "--k", "3", "--batch-size", "2"]
    return main([*arguments, "--shard-examples", "2", *options])


@pytest.fixture(scope="module")
def cache(teacher, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "new"
    assert command(teacher, text, folder) == 0
    return folder


@pytest.mark.slow
def test_students_train_from_what_it_wrote(cache, teacher):
    documents = data.load_documents(cache / "documents")
    network, variables = interop.load_pretrained(teacher)
    fingerprint = teachers.variables_fingerprint(variables)
    source = teachers.CachedTeacher(data.pack(documents, 6), cache, fingerprint)
    found = source.take(np.arange(len(source)))
    names = ("input_ids", "segment_ids", "position_ids")
    inputs = {name: jnp.asarray(found[name]) for name in names}
    logits = network.apply(variables, inputs)[0].logits
    best = np.asarray(jax.lax.top_k(logits, 3)[1])
    real = found["mask"]
    assert (found["teacher_ids"][real] == best[real]).all()
    student = zoo.llama(12, 4, 1, 1, 8)
    program = distill(student, None, methods.topk_kd(), optax.adam(0.05))
    _, history = training.fit(
        program, data.batches(source, 2, epochs=4), key=jax.random.key(0)
    )
    assert np.isfinite(history[-1]["train_topk_kd"])


def test_says_what_was_written_and_writes_nothing_again(cache, teacher, text, capsys):
    before = {f: f.stat().st_mtime_ns for f in cache.glob("*.array_record")}
    assert command(teacher, text, cache) == 0
    assert {f: f.stat().st_mtime_ns for f in cache.glob("*.array_record")} == before
    shown = capsys.readouterr().out
    manifest = json.loads((cache / "teacher.json").read_text())
    assert f"teacher {manifest['teacher']}" in shown
    assert f"{sum(f.stat().st_size for f in before):,} bytes" in shown


def test_documents_of_another_tokenizer_are_refused(teacher, tmp_path, capsys):
    data.tokenize("bytes", ["abc"], data.ByteTokenizer()).save(tmp_path / "bytes")
    assert command(teacher, tmp_path / "bytes", tmp_path / "cache") == 1
    assert "tokens up to 258, but the teacher's logits are 12" in _error(capsys)
    assert not (tmp_path / "cache").exists()


def test_mistakes_get_one_line(teacher, text, cache, tmp_path, capsys):
    for arguments, message in [
        ((tmp_path, text, tmp_path / "a"), "config.json is missing"),
        ((teacher, tmp_path / "none.txt", tmp_path / "a"), "none.txt is missing"),
        ((teacher, text, cache, "--dtype", "float32"), "holds another cache"),
        ((teacher, text, cache, "--mesh", "nine"), "unknown mesh 'nine'"),
        ((teacher, text, tmp_path / "a", "--field", "body"), "no text in its field"),
    ]:
        assert command(*arguments) == 1
        assert message in _error(capsys)


def _error(capsys):
    return " ".join(capsys.readouterr().err.split())
