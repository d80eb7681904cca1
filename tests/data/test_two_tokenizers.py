"""One text in two tokenizers' tokens: which tokens write the same stretch of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tokenizers import Tokenizer as File
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxkd import Network, Outputs, data, distill, methods
from jaxkd.data.text.two_tokenizers import END, token_bytes

TEXTS = ["to be or not to be", "that is the question", "die Frage — naïve Ärzte"]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": "to be?"},
            {"role": "assistant", "content": "to be or not — naïve"},
            {"role": "user", "content": "the question?"},
            {"role": "assistant", "content": "that is the question"},
        ]
    },
    {"prompt": "or not", "response": "to be"},
]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A byte-level BPE tokenizer in which letters beyond ASCII are several tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    file = File(models.BPE())
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    file.train_from_iterator(TEXTS[:2] * 3, trainer)
    file.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return data.load_tokenizer(folder)


BYTES = data.ByteTokenizer()


def test_bytes_of_tokens(bpe):
    pieces = token_bytes(bpe)
    for text in TEXTS:
        assert b"".join(pieces[token] for token in bpe.encode(text)) == text.encode()
    assert pieces[bpe.eos] == END
    assert pieces[0] == b"<s>"
    assert {bytes([b]) for b in range(256)} <= set(pieces)
    assert token_bytes(BYTES)[65:67] == [b"A", b"B"]
    assert token_bytes(BYTES)[0xC3] == b"\xc3"


def test_bytes_of_sentencepiece_s_tokens(tmp_path):
    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0x0A>": 2, "s": 3}
    file = File(models.BPE(vocabulary, [], unk_token="<unk>"))
    file.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    file.save(str(tmp_path / "tokenizer.json"))
    pieces = token_bytes(data.load_tokenizer(tmp_path))
    assert pieces == [b"<unk>", b" the", b"\n", b"s"]


def test_common_tokens_write_the_same(bpe):
    first, second = token_bytes(BYTES), token_bytes(bpe)
    common = data.common_tokens(BYTES, bpe)
    assert len(common) == 257  # all bytes, and the end
    assert all(first[i] == second[j] for i, j in common)
    assert [BYTES.eos, bpe.eos] in common.tolist()


@pytest.mark.parametrize(
    ("first", "second", "spans"),
    [
        (
            ["the", " ca", "t", " sat"],
            ["the", " cat", " sat"],
            ([1, 2, 2, 3], [1, 2, 3]),
        ),
        (["ab", "c"], ["a", "bc"], ([1, 1], [1, 1])),
        (["a", "b"], ["a", "b"], ([1, 2], [1, 2])),
        # A space that one tokenizer puts before a text, and an end that both have.
        ([" to", " be", "\0"], ["to", " ", "be", "\0"], ([1, 2, 3], [1, 2, 2, 3])),
        # What one has besides at the end is in no span.
        (["a", "b", "\n"], ["a", "b"], ([1, 2, 0], [1, 2])),
        # A letter that one of them normalises: only what lies around it is aligned.
        (["x", "ä", "y", "z"], ["x", "a", "yz"], ([1, 0, 3, 3], [1, 0, 3])),
        (["x"], ["y"], ([0], [0])),
        ([], ["y"], ([], [0])),
        (["", "a", "", "b"], ["a", "b"], ([1, 1, 1, 2], [1, 2])),
    ],
)
def test_spans_end_where_both_cut(first, second, spans):
    pieces = [[x.encode() for x in some] for some in (first, second)]
    found = data.align_pieces(*pieces)
    assert [x.tolist() for x in found] == list(spans)
    found = data.align_pieces(*pieces[::-1])
    assert [x.tolist() for x in found] == list(spans)[::-1]


def written(batch, row, pieces, before, spans):
    """Return the bytes of each span of a row, by its number."""
    found = {}
    for token, number in zip(
        batch[f"{before}label"][row], batch[spans][row], strict=True
    ):
        if number:
            found[int(number)] = found.get(int(number), b"") + pieces[token]
    return found


def documents(bpe, template=data.PLAIN):
    return [
        data.tokenize_chats("chats", CHATS, reader, template) for reader in (BYTES, bpe)
    ]


def test_rows_hold_both_and_their_spans(bpe):
    pair = data.two_tokenizers(*documents(bpe), BYTES, bpe)
    batch = pair.take(np.array([1, 0]))
    assert batch["index"].tolist() == [1, 0]
    pieces = token_bytes(BYTES), token_bytes(bpe)
    for row, answer in enumerate(["to be", "to be or not — naïvethat is the question"]):
        own = written(batch, row, pieces[0], "", "teacher_student_span_ids")
        other = written(batch, row, pieces[1], "teacher_", "teacher_span_ids")
        assert own == other
        assert b"".join(own.values()).replace(END, b"").decode() == answer
    student, teacher = documents(bpe)
    tokens = student[1]
    assert batch["input_ids"][0, : len(tokens) - 1].tolist() == tokens[:-1].tolist()
    assert batch["label"][0, : len(tokens) - 1].tolist() == tokens[1:].tolist()
    assert batch["mask"][0].sum() == student.trained[student.offsets[1] :].sum()
    assert (
        batch["attention_mask"].sum(1).tolist() == (student.lengths - 1)[::-1].tolist()
    )
    assert batch["teacher_mask"].sum(1).tolist() == [
        teacher.trained[teacher.offsets[i] :][: teacher.lengths[i]].sum()
        for i in (1, 0)
    ]


def test_plain_texts_are_all_answer(bpe):
    pair = data.two_tokenizers(
        *(data.tokenize("texts", TEXTS, reader) for reader in (BYTES, bpe)), BYTES, bpe
    )
    batch = pair.take(np.arange(3))
    pieces = token_bytes(BYTES), token_bytes(bpe)
    for row, text in enumerate(TEXTS):
        own = written(batch, row, pieces[0], "", "teacher_student_span_ids")
        assert b"".join(own.values()) == text.encode() + END
        other = written(batch, row, pieces[1], "teacher_", "teacher_span_ids")
        assert own == other


def test_what_a_row_cuts_off_is_in_no_span(bpe):
    whole = data.two_tokenizers(*documents(bpe), BYTES, bpe).take(np.arange(2))
    pair = data.two_tokenizers(*documents(bpe), BYTES, bpe, length=16, teacher_length=9)
    batch = pair.take(np.arange(len(pair)))
    names = "teacher_student_span_ids", "teacher_span_ids"
    own, other = (
        {number for number in batch[name][0].tolist() if number} for name in names
    )
    assert own == other
    assert 0 < len(own) < whole[names[0]][0].max()
    for name in names:
        kept = np.isin(whole[name][0], sorted(own)).sum()
        assert kept == (batch[name][0] > 0).sum()


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_with_other_tokens(bpe):
    """With parts of a batch worked through one after another it is the same step."""
    pair = data.two_tokenizers(*documents(bpe), BYTES, bpe)
    batch = pair.take(np.array([0, 1]))
    student, teacher = (
        Network.from_apply(
            lambda key, size=reader.vocabulary, seed=seed: {
                "table": jax.random.normal(jax.random.key(seed), (size, size))
            },
            lambda params, ids: params["table"][ids],
            reads=("input_ids",),
        )
        for seed, reader in enumerate((BYTES, bpe))
    )
    method = methods.aligned_kd(data.common_tokens(BYTES, bpe))
    found = []
    for parts in (1, 2):
        program = distill(student, teacher, method, optax.sgd(1.0), accumulate=parts)
        state = jax.jit(program.init)(jax.random.key(0), batch)
        step = jax.jit(program.step)
        state, metrics = step(state, batch)
        found.append((float(metrics["loss"]), float(step(state, batch)[1]["loss"])))
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert found[0][1] < found[0][0]
    by_position = distill(student, teacher, methods.uld(), optax.sgd(1.0))
    jax.eval_shape(by_position.step, state, batch)  # the same rows


def test_bad_pairs_are_named(bpe):
    student, teacher = documents(bpe)
    one = data.tokenize_chats("chats", CHATS[:1], bpe)
    with pytest.raises(ValueError, match="student has 2 documents but teacher 1"):
        data.two_tokenizers(student, one, BYTES, bpe)
    with pytest.raises(ValueError, match="student has tokens below 259, but student_"):
        data.two_tokenizers(student, teacher, bpe, BYTES)
    with pytest.raises(ValueError, match="anything to be learnt within 1"):
        data.two_tokenizers(student, teacher, BYTES, bpe, length=1)
    other = data.tokenize_chats("chats", [CHATS[1], CHATS[0]], bpe)
    with pytest.raises(
        ValueError, match=r"document 0 .* 2 answers .* but 1 in the tea"
    ):
        data.two_tokenizers(student, other, BYTES, bpe).take(np.array([0]))
    method = methods.aligned_kd(data.common_tokens(BYTES, bpe))
    outputs, batch = Outputs(jnp.zeros((1, 2, 259))), {"label": jnp.zeros((1, 2), int)}
    with pytest.raises(ValueError, match="needs teacher_label, teacher_student_span"):
        method.loss({"state": {}}, outputs, outputs, batch, None, 0)
