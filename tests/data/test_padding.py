"""Prompts that end together, and texts to classify in few lengths."""

import lzma

import jax
import numpy as np
import pytest

from jaxkd import data, models

BYTES = data.ByteTokenizer()


def test_prompts_end_together():
    found = data.left_pad([[5, 6, 7], [8]], pad=3)
    np.testing.assert_array_equal(found["input_ids"], [[5, 6, 7], [3, 3, 8]])
    np.testing.assert_array_equal(found["attention_mask"], [[1, 1, 1], [0, 0, 1]])
    longer = data.left_pad([[5], [6]], None, 3)
    np.testing.assert_array_equal(longer["input_ids"], [[0, 0, 5], [0, 0, 6]])


@pytest.mark.slow
def test_padding_before_a_prompt_changes_nothing():
    network = models.llama(20, 16, 2, 4, 24)
    variables = jax.jit(network.init)(jax.random.key(0))
    apply = jax.jit(lambda x: network.apply(variables, x)[0].logits)
    padded = apply(data.left_pad([[5, 6, 7, 4], [8, 9]], pad=3))
    alone = apply(data.left_pad([[8, 9], [8, 9]], pad=3))
    np.testing.assert_allclose(padded[1, 2:], alone[0], rtol=1e-5, atol=1e-6)


def test_prompts_are_examples():
    found = data.tokenize_chats("x", [{"prompt": "a", "response": "b"}] * 3, BYTES)
    prompts = data.Prompts(found, 6, BYTES.pad)
    (batch,) = data.batches(prompts, 3, epochs=1, seed=None)
    np.testing.assert_array_equal(
        batch["input_ids"][0], [258, 258, 256, ord("a"), ord("b"), 257]
    )
    assert batch["index"].tolist() == [0, 1, 2]
    assert prompts.fingerprint != data.Prompts(found, 7, BYTES.pad).fingerprint
    with pytest.raises(ValueError, match="prompt 0 of 'x' has 4 tokens, more than len"):
        data.Prompts(found, 3, None)


def test_the_last_answer_responds_to_all_before_it():
    def say(*words):
        roles = ("user", "assistant") * 2
        return {
            "messages": [
                {"role": role, "content": word}
                for role, word in zip(roles, words, strict=False)
            ]
        }

    records = [say("a", "b", "c", "de"), say("f", "ghi"), say("too long", "j")]
    chats = data.tokenize_chats("x", records, BYTES)
    found = data.prompts_of_chats(chats, 6, 3, BYTES.pad)
    batch = found.take(np.arange(2))
    np.testing.assert_array_equal(
        batch["input_ids"],
        [[258, 256, ord("a"), ord("b"), 257, ord("c")], [258] * 4 + [256, ord("f")]],
    )
    np.testing.assert_array_equal(batch["response_ids"], [[*b"de", 257], [*b"ghi"]])
    one = data.prompts_of_chats(chats, 6, 5, BYTES.pad).take(np.array([0]))
    assert one["response_ids"].tolist() == [[*b"de", 257, 258, 258]]
    assert one["response_mask"].tolist() == [[1, 1, 1, 0, 0]]
    assert len(found) == 2
    assert found.fingerprint != data.prompts_of_chats(chats, 6, 4, None).fingerprint
    with pytest.raises(ValueError, match="no prompt of 'x' has at most 1 tokens"):
        data.prompts_of_chats(chats, 1, 3, None)
    with pytest.raises(ValueError, match="'x' has no answers apart from the rest"):
        data.prompts_of_chats(data.tokenize("x", ["a"], BYTES), 6, 3, None)
    with pytest.raises(ValueError, match="2 prompts, 1 responses and response_length"):
        data.Prompts(found.documents, 6, None, data.tokenize("y", ["a"], BYTES), 3)


def test_bad_prompts_are_refused():
    with pytest.raises(ValueError, match="prompt 1 is empty: begin it with"):
        data.left_pad([[1], []], 0)
    with pytest.raises(ValueError, match="prompts is empty"):
        data.left_pad([], 0)
    with pytest.raises(ValueError, match="prompt 1 has 3 tokens, more than length 2"):
        data.left_pad([[1], [1, 2, 3]], 0, 2)


def labelled(**changes):
    arguments = {"classes": 2, "lengths": (4, 8), **changes}
    texts = ["ab", "abcd", "a", "abcdefghij"]
    return data.label_texts("toy", texts, [0, 1, 1, 0], BYTES, **arguments)


def test_a_batch_has_the_first_length_that_holds_it():
    source = labelled()
    short = source.take(np.array([2, 0]))
    np.testing.assert_array_equal(
        short["input_ids"], [[256, 97, 257, 258], [256, 97, 98, 257]]
    )
    np.testing.assert_array_equal(short["attention_mask"], [[1, 1, 1, 0], [1] * 4])
    assert short["label"].tolist() == [1, 0]
    assert "token_type_ids" not in short
    long = source.take(np.array([0, 3]))
    assert long["input_ids"].shape == (2, 8)
    np.testing.assert_array_equal(long["input_ids"][1], [256, *b"abcdef", 257])
    assert (source.name, source.classes, len(source)) == ("toy", 2, 4)


def test_pairs_have_types():
    seconds = ["x", "y", "z", "uvwxyz"]
    source = labelled(seconds=seconds, lengths=(10,))
    batch = source.take(np.array([0, 3]))
    np.testing.assert_array_equal(
        batch["token_type_ids"], [[0] * 4 + [1] * 2 + [0] * 4, [0] * 5 + [1] * 5]
    )


def test_bad_labelled_texts_are_refused(monkeypatch):
    texts = ["a", "b"]
    with pytest.raises(ValueError, match="text 1 of 'x' is empty"):
        data.label_texts("x", ["a", " "], [0, 1], BYTES, classes=2, lengths=(4,))
    with pytest.raises(ValueError, match="'x' has 2 texts but 1 labels"):
        data.label_texts("x", texts, [0], BYTES, classes=2, lengths=(4,))
    with pytest.raises(ValueError, match="2 texts but 1 seconds"):
        data.label_texts(
            "x", texts, [0, 1], BYTES, classes=2, lengths=(4,), seconds=["c"]
        )
    with pytest.raises(ValueError, match="'x' hold no document"):
        data.label_texts("x", [], [], BYTES, classes=2, lengths=(4,))
    with pytest.raises(ValueError, match="has label 2 at example 1"):
        data.label_texts("x", texts, [0, 2], BYTES, classes=2, lengths=(4,))
    with pytest.raises(ValueError, match=r"lengths must rise, got \(8, 4\)"):
        labelled(lengths=(8, 4))
    with pytest.raises(ValueError, match=r"text 0 of 'x' has 2 tokens, more than the"):
        data.label_texts("x", texts, [0, 1], BYTES, classes=2, lengths=(1,))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes share.*alone, \(8,\)"):
        labelled()


@pytest.mark.parametrize(
    ("name", "files", "header"),
    [
        ("sst2", ("sst2_train", "sst2_validation"), "sentence"),
        ("ag_news", ("agnews_train_subset", "agnews_test"), "text"),
        ("mrpc", ("mrpc_train", "mrpc_test"), "sentence1\tsentence2"),
    ],
)
def test_corpora_are_read(monkeypatch, tmp_path, name, files, header):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    for file in files:
        row = "\t".join("so so" for _ in header.split("\t"))
        content = f"{header}\tlabel\n{row}\t1\n{row}\t0\n"
        path = tmp_path / "text" / f"{file}.tsv.xz"
        path.write_bytes(lzma.compress(content.encode()))
    found = data.TEXT_CLASSIFICATION[name](BYTES, (16,))
    batch = found.train.take(np.array([0, 1]))
    assert batch["label"].tolist() == [1, 0]
    assert ("token_type_ids" in batch) == (name == "mrpc")
    assert len(found.test) == 2


def test_wikitext_is_windows(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    for file in ("valid", "test"):
        path = tmp_path / "text" / f"wikitext2_{file}.txt.xz"
        path.write_bytes(lzma.compress(b" \n = A = \n \n a b c . \n"))
    found = data.wikitext2(8)
    assert found.train.classes == 259
    ids = found.train.take(np.array([0]))["input_ids"][0]
    assert BYTES.decode(ids.tolist()) == " \n = A ="
