"""Documents, conversations and their packing: nothing sees what it must not."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st

from jaxkd import data, models
from jaxkd.data.text.packing import best_fit
from jaxkd.losses import cross_entropy_loss
from jaxkd.methods.base import batch_weights

BYTES = data.ByteTokenizer()
TEXTS = ["to be", "or not", "to be", "a", "that is the question"]


def documents(lengths, trained=None, vocabulary=50):
    """Documents of these lengths, whose tokens are 0, 1, 2, …"""
    total = sum(lengths)
    tokens = np.arange(total, dtype=np.int32) % vocabulary
    offsets = np.cumsum([0, *lengths])
    return data.Documents("toy", tokens, offsets, vocabulary, trained)


def test_texts_become_documents_between_begin_and_end():
    found = data.tokenize("hamlet", iter(TEXTS), BYTES)
    assert len(found) == 5
    for text, i in zip(TEXTS, range(5), strict=True):
        assert found[i].tolist() == [256, *text.encode(), 257]
    assert found.tokens.dtype == np.uint16
    plain = data.tokenize("hamlet", TEXTS, data.ByteTokenizer(specials=False))
    assert plain[1].tolist() == list(b"or not")
    assert plain.tokens.dtype == np.uint8
    assert plain.fingerprint != found.fingerprint


def test_unsigned_offsets_that_go_back_are_refused():
    offsets = np.array([0, 9, 3, 9], np.uint64)
    with pytest.raises(ValueError, match="document 1 of 'a' is empty"):
        data.Documents("a", np.arange(9), offsets, 9)


def test_documents_are_read_in_place(tmp_path):
    record = {"prompt": "to be", "response": "or not"}
    for found in (
        data.tokenize("hamlet", TEXTS, BYTES),
        data.tokenize_chats("hamlet", [record], BYTES),
    ):
        found.save(tmp_path / "x")
        read = data.load_documents(tmp_path / "x")
        assert isinstance(read.tokens, np.memmap)
        assert (read.name, read.vocabulary) == ("hamlet", 259)
        assert read.fingerprint == found.fingerprint
        np.testing.assert_array_equal(read.tokens, found.tokens)
        assert (read.trained is None) == (found.trained is None)
    (tmp_path / "x" / "tokens.npy").write_text("1 2 3")
    with pytest.raises(ValueError, match="holds damaged documents"):
        data.load_documents(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"documents\.json is missing"):
        data.load_documents(tmp_path)


def test_no_damaged_documents_are_loaded(tmp_path):
    documents([3, 2, 4]).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    read = []
    for what in damaged(tmp_path):
        with contextlib.suppress(ValueError):
            data.load_documents(tmp_path)
            read.append(what)
    assert all(what.endswith("notes.txt") or "notes.txt cut" in what for what in read)
    # Whoever wrote them without digests may have counted the vocabulary wrongly.
    (tmp_path / "SHA256SUMS").rename(tmp_path / "kept")
    about = (tmp_path / "documents.json").read_text()
    (tmp_path / "documents.json").write_text(re.sub(r": \d+", ": 3", about))
    with pytest.raises(ValueError, match=r"tokens go from 0 to .*vocabulary is 3"):
        data.load_documents(tmp_path)
    (tmp_path / "documents.json").write_text(about)
    (tmp_path / "kept").rename(tmp_path / "SHA256SUMS")
    # Documents on the disk may be saved where they are.
    data.load_documents(tmp_path).save(tmp_path)
    assert data.load_documents(tmp_path).offsets.tolist() == [0, 3, 5, 9]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_bad_documents_are_refused():
    with pytest.raises(ValueError, match=r"document 1 of 'x' is empty \(''\)"):
        data.tokenize("x", ["a", "", "b"], BYTES)
    with pytest.raises(ValueError, match="'x' hold no document"):
        data.tokenize("x", [], BYTES)
    with pytest.raises(ValueError, match="document 1 of 'toy' is empty"):
        documents([3, 0, 2])
    with pytest.raises(ValueError, match="from 0 to 9, but there are 8 tokens"):
        data.Documents("x", np.arange(8), np.array([0, 9]), 8)


def test_masks_that_do_not_fit_are_refused(unchecked_shapes):
    with pytest.raises(ValueError, match="trained has 7 values, but 'x' has 8"):
        data.Documents("x", np.arange(8), np.array([0, 8]), 8, np.ones(7, bool))


@given(st.lists(st.integers(1, 10), min_size=1, max_size=60))
def test_few_rows_hold_all(sizes):
    sizes = np.array(sizes)
    row = best_fit(sizes, 10)
    filled = np.bincount(row, sizes)
    assert filled.max() <= 10
    assert filled.min() > 0
    # Two rows are never at most half full: they would be one.
    assert np.sum(filled <= 5) <= 1


@pytest.mark.parametrize("too_long", ["split", "cut", "drop"])
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 12))
def test_every_label_is_the_next_token_of_its_document(too_long, lengths, length):
    source = documents([*lengths, 2], vocabulary=1000)
    packed = data.pack(source, length, too_long=too_long)
    batch = packed.take(np.arange(len(packed)))
    real = batch["segment_ids"] > 0
    np.testing.assert_array_equal(real, batch["mask"])
    ids, label = batch["input_ids"][real], batch["label"][real]
    # Tokens are numbered through, so that the next one is the next number, and
    # the label of a document's last input is its last token.
    np.testing.assert_array_equal(label, ids + 1)
    ends = source.offsets[1:] - 1
    assert not set(ids) & set(ends.tolist())
    whole = {
        "split": np.ones(len(source), bool),
        "cut": np.ones(len(source), bool),
        "drop": source.lengths - 1 <= length,
    }[too_long] & (source.lengths > 1)
    expected = [
        token
        for start, size, kept in zip(
            source.offsets, source.lengths, whole, strict=False
        )
        if kept
        for token in range(
            start, start + (min(size - 1, length) if too_long != "split" else size - 1)
        )
    ]
    assert sorted(ids) == expected
    assert packed.dropped == np.sum(~whole)
    assert packed.wasted == pytest.approx(1 - real.mean())
    # Positions begin anew with each segment, and count on within it.
    before, after = batch["segment_ids"][:, :-1], batch["segment_ids"][:, 1:]
    steps = np.diff(batch["position_ids"], axis=1)
    same = (before == after) & (after > 0)
    assert (steps[same] == 1).all()
    assert (batch["position_ids"][:, 1:][before != after] == 0).all()
    assert (batch["position_ids"][:, 0] == 0).all()


@pytest.mark.slow
def test_packed_documents_are_read_as_if_each_were_alone():
    network = models.llama(259, 16, 2, 4, 24, kv_heads=2)
    variables = jax.jit(network.init)(jax.random.key(0))
    found = data.tokenize("hamlet", TEXTS, BYTES)
    packed, alone = (data.pack(found, 24, alone=alone) for alone in (False, True))
    assert (len(packed), len(alone)) == (2, 5)
    assert packed.wasted < 0.2 < alone.wasted

    @jax.jit
    def losses(batch):
        outputs, _ = network.apply(variables, network.read(batch))
        loss = cross_entropy_loss(outputs.logits, batch["label"])
        weights = batch_weights(batch, loss.shape)
        return loss, jnp.sum(loss * weights) / jnp.sum(weights)

    batch = packed.take(np.arange(2))
    together, mean = losses(batch)
    separate = []
    for i in range(5):
        row = found[i].astype(np.int32)[None]
        ids = np.zeros((1, 24), np.int32)
        ids[:, : row.shape[1] - 1] = row[:, :-1]
        label = np.zeros((1, 24), np.int32)
        label[:, : row.shape[1] - 1] = row[:, 1:]
        mask = np.arange(24)[None] < row.shape[1] - 1
        # No segments here: what is behind the document is not seen, being behind it.
        loss, _ = losses({"input_ids": ids, "label": label, "mask": mask})
        separate.append(np.asarray(loss)[mask])
    by_document = [
        np.asarray(together)[row][batch["segment_ids"][row] == segment]
        for row in range(2)
        for segment in range(1, batch["segment_ids"][row].max() + 1)
    ]
    key = lambda x: (len(x), tuple(np.round(x, 4)))  # noqa: E731
    for a, b in zip(
        sorted(by_document, key=key), sorted(separate, key=key), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert mean == pytest.approx(np.concatenate(separate).mean(), rel=1e-5)
    _, plain = losses(alone.take(np.arange(5)))
    assert mean == pytest.approx(float(plain), rel=1e-5)


def test_packed_documents_go_through_the_pipeline():
    packed = data.pack(documents([3, 9, 5, 4, 7, 2], vocabulary=30), 8)
    iterator = iter(data.batches(packed, 2, epochs=3, seed=1))
    next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    again = iter(data.batches(packed, 2, epochs=3, seed=1))
    again.set_state(state)
    for batch, same in zip(rest, again, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, same[name])
    other = data.pack(documents([3, 9, 5, 4, 7, 3], vocabulary=30), 8)
    with pytest.raises(ValueError, match="the data iterator's state is of"):
        iter(data.batches(other, 2, epochs=3, seed=1)).set_state(state)


def test_bad_packing_is_refused():
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        data.pack(documents([3]), 0)
    with pytest.raises(ValueError, match="no document of 'toy' is left to learn from"):
        data.pack(documents([1, 1]), 4)
    with pytest.raises(ValueError, match=r"within 4 places"):
        data.pack(documents([9]), 4, too_long="drop")
    wrong = data.Documents("x", np.array([1, 7]), np.array([0, 2]), 5)
    with pytest.raises(ValueError, match=r"'x' have token 7.*0 to 4"):
        data.pack(wrong, 4).take(np.array([0]))


def test_an_unknown_way_is_refused(unchecked_shapes):
    with pytest.raises(ValueError, match=r"too_long 'splt': did you mean 'split'"):
        data.pack(documents([3]), 4, too_long="splt")


CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Go"},
    {"role": "assistant", "content": "No"},
]


def learnt(found, document=0):
    """Return a document's text, and the parts of it that are learnt."""
    start, end = found.offsets[document : document + 2]
    tokens, mask = found.tokens[start:end], found.trained[start:end]
    parts = np.split(tokens, np.flatnonzero(np.diff(mask)) + 1)
    first = bool(mask[0])
    return tokens.tolist(), [p.tolist() for p in parts[1 - first :: 2]]


def test_only_answers_are_learnt():
    found = data.tokenize_chats("x", [{"messages": CHAT}], BYTES, data.CHATML)
    tokens, parts = learnt(found)
    text = (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>\n"
    )
    assert tokens == [*text.encode()], "ChatML has no bos"
    answers = [BYTES.decode(part) for part in parts]
    assert answers == ["Yes?<|im_end|>\n", "No<|im_end|>\n"]
    prompt = data.chat_prompt(CHAT[:3], BYTES, data.CHATML)
    assert prompt == tokens[: len(prompt)]
    assert BYTES.decode(prompt).endswith("<|im_start|>assistant\n")


def test_a_prompt_and_its_response_need_no_template():
    records = [{"prompt": "2+2=", "response": "4"}]
    found = data.tokenize_chats("x", records, BYTES)
    tokens, parts = learnt(found)
    assert tokens == [256, *b"2+2=4", 257]
    assert parts == [[*b"4", 257]]
    assert data.chat_prompt("2+2=", BYTES) == [256, *b"2+2="]
    batch = data.pack(found, 8).take(np.array([0]))
    assert batch["label"][0][batch["mask"][0]].tolist() == [*b"4", 257]
    assert batch["segment_ids"][0].tolist() == [1] * 6 + [0] * 2


def test_a_response_that_is_cut_off_leaves_nothing_to_learn():
    records = [{"prompt": "p" * n, "response": "r"} for n in (20, 2)]
    found = data.tokenize_chats("x", records, BYTES)
    for too_long in ("cut", "drop"):
        packed = data.pack(found, 8, too_long=too_long)
        assert (len(packed), packed.dropped) == (1, 1)
    # The piece with the response is kept, the one without it is not.
    packed = data.pack(found, 12, too_long="split")
    assert packed.take(np.arange(len(packed)))["mask"].sum() == 4
    assert packed.dropped == 0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, r"record 1 of 'x': it has \['text'\]"),
        ({"prompt": "a", "response": ""}, "record 1 of 'x': the assistant's answer is"),
        ({"messages": CHAT[:3]}, "record 1 of 'x': the assistant must have the last"),
        ({"messages": None}, "record 1 of 'x': messages must be a list, got None"),
        ({"messages": []}, "record 1 of 'x': the assistant must have the last word"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role 'tool' is none of"),
        ({"messages": [{"role": "user", "content": 3}]}, "must be text, got 3"),
    ],
)
def test_records_that_are_no_conversations_are_refused(record, message):
    good = {"prompt": "a", "response": "b"}
    with pytest.raises(ValueError, match=message):
        data.tokenize_chats("x", [good, record], BYTES)


def test_a_text_that_is_not_unicode_is_named_by_its_place():
    with pytest.raises(ValueError, match=r"documents 0 to 1 of 'x': .*surrogate"):
        data.tokenize("x", ["a", "\ud800"], data.ByteTokenizer())
