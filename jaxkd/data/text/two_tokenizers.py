"""One text in two networks' tokens, and which of them write the same stretch of it.

Where two tokenizers cut a text at the same place, a *span* ends: the tokens of a span
write the same bytes in both, in as many pieces as each wants. `methods.aligned_kd`
compares the networks span by span.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, Integer

from jaxkd.arguments import checked
from jaxkd.data.shown import brief
from jaxkd.data.text.documents import Documents
from jaxkd.data.text.tokenizers import Tokenizer, tokens_around

Spans = Int[np.ndarray, "_"]

END = b"\0<eos>"
"""What stands for the token that ends a text, which every tokenizer writes its way."""


@checked()
def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes that each token writes, by its number; `END` for ``eos``.

    A tokenizer of your own may say by ``pieces`` what `FileTokenizer.pieces` says; of
    one that does not, a token is what it alone is decoded to.

    Args:
        tokenizer: any.
    """
    found = list(
        getattr(tokenizer, "pieces", None)
        or (tokenizer.decode([i]).encode() for i in range(tokenizer.vocabulary))
    )
    if tokenizer.eos is not None:
        found[tokenizer.eos] = END
    return found


@checked()
def common_tokens(student: Tokenizer, teacher: Tokenizer) -> Int[np.ndarray, "pairs 2"]:
    """Return the tokens that write the same bytes, as (student's, teacher's) numbers.

    What ends a text is the same in both, whatever its name.

    Args:
        student: its tokenizer.
        teacher: likewise.

    Raises:
        ValueError: there is no such token.
    """
    numbers = {piece: i for i, piece in reversed([*enumerate(token_bytes(teacher))])}
    pairs = {
        piece: (i, numbers[piece])
        for i, piece in reversed([*enumerate(token_bytes(student))])
        if piece and piece in numbers
    }
    if not pairs:
        raise ValueError(
            "student and teacher have no token in common: give the tokenizers of two "
            "language models, as data.load_tokenizer reads them"
        )
    return np.array(sorted(pairs.values()), np.int64)


@checked()
def align_pieces(
    student: Sequence[bytes], teacher: Sequence[bytes]
) -> tuple[Spans, Spans]:
    """Return the span of each token, from 1 on, in both tokenizers; 0 for none.

    Where the texts differ, as where a tokenizer normalises, no span ends between their
    common beginning and their common end. What lies there is a span if it differs by
    spaces alone.

    Args:
        student: the bytes of each of its tokens.
        teacher: likewise, of the same text.
    """
    texts = b"".join(student), b"".join(teacher)
    shorter = min(map(len, texts))
    begin = _agreeing(texts[0][:shorter], texts[1][:shorter])
    rest = shorter - begin
    end = _agreeing(*(text[::-1][:rest] for text in texts))
    places = []
    for pieces, text in zip((student, teacher), texts, strict=True):
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        # Of tokens that end at one place, the last one ends a span.
        last = np.append(ends[1:] != ends[:-1], True)[: len(ends)]
        # Cuts after the difference are counted from the text's end, as −1, −2, ….
        cuts = np.where(ends <= begin, ends, ends - len(text) - 1)
        known = last & ((ends <= begin) | (ends >= len(text) - end))
        places.append(np.where(known, cuts, 0))
    shared = np.intersect1d(*places)
    shared = shared[shared != 0]
    spans = []
    for cuts in places:
        closed = np.cumsum(np.isin(cuts, shared))
        span = 1 + np.concatenate([[0], closed])[: len(cuts)]
        spans.append(np.where(span <= len(shared), span, 0))
    across = 1 + (shared > 0).sum()  # the span that the difference is in
    written = [
        b"".join(piece for piece, n in zip(pieces, span, strict=True) if n == across)
        for pieces, span in zip((student, teacher), spans, strict=True)
    ]
    if written[0].strip() != written[1].strip():
        spans = [np.where(span == across, 0, span) for span in spans]
    return spans[0], spans[1]


def _agreeing(first: bytes, second: bytes) -> int:
    """Return how many bytes agree, from the first on."""
    size = min(len(first), len(second))
    same = np.frombuffer(first[:size], "u1") == np.frombuffer(second[:size], "u1")
    return size if same.all() else int(same.argmin())


@checked()
@dataclass(frozen=True)
class TwoTokenizers:
    """Texts as two networks read them, a row each, with the spans that both write.

    `two_tokenizers` makes them.

    Attributes:
        student: the texts in its tokens.
        teacher: the same texts in its.
        student_pieces: the bytes of each token, as `token_bytes` returns them.
        teacher_pieces: likewise.
        begins: how many tokens begin a text, of both, where all of it is learnt.
        length: places of the student's rows.
        teacher_length: of the teacher's.
        kept: documents that have a token to be learnt in their row.
    """

    student: Documents
    teacher: Documents
    student_pieces: Sequence[bytes]
    teacher_pieces: Sequence[bytes]
    begins: tuple[int, int]
    length: int
    teacher_length: int
    kept: Integer[np.ndarray, "rows"]

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    @property
    def name(self) -> str:
        """For messages and results."""
        return f"{self.student.name} in two tokenizers' tokens"

    @property
    def classes(self) -> int:
        """Labels, which are the student's, are below it."""
        return self.student.vocabulary

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.kept)

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return rows of (rows, length), and ``index``.

        Of the student ``input_ids``, ``attention_mask``, ``label`` and ``mask``,
        whether the label is to be learnt; of the teacher the same with ``teacher_``
        before, (rows, teacher length); and the span of each label that both networks
        predict, from 1 on, in ``teacher_student_span_ids`` and ``teacher_span_ids``.

        Raises:
            ValueError: the two have not as many answers in a document.
        """
        rows = [self._row(int(self.kept[position])) for position in positions]
        batch = {
            name: np.stack([row[name] for row in rows]) for name in rows[0] if rows
        }
        return {**batch, "index": np.asarray(positions, np.int32)}

    def _row(self, document: int) -> dict[str, np.ndarray]:
        tokens = self.student[document], self.teacher[document]
        answers = [
            _answers(documents, document, begin)
            for documents, begin in zip(
                (self.student, self.teacher), self.begins, strict=True
            )
        ]
        if len(answers[0]) != len(answers[1]):
            raise ValueError(
                f"document {document} of {self.student.name!r} has {len(answers[0])} "
                f"answers in the student's tokens, but {len(answers[1])} in the "
                "teacher's: tokenise the same conversations with both"
            )
        spans = [np.zeros(len(some), np.int32) for some in tokens]
        for student, teacher in zip(*answers, strict=True):
            found = align_pieces(
                [self.student_pieces[token] for token in tokens[0][student]],
                [self.teacher_pieces[token] for token in tokens[1][teacher]],
            )
            before = max(some.max() for some in spans)
            for some, place, span in zip(spans, (student, teacher), found, strict=True):
                some[place] = np.where(span > 0, span + before, 0)
        learnt = [np.zeros(len(some), bool) for some in tokens]
        for each, places in zip(learnt, answers, strict=True):
            for place in places:
                each[place] = True
        lengths = self.length, self.teacher_length
        spans = predicted(spans, lengths)
        student, teacher = (
            padded_row(*some)
            for some in zip(tokens, learnt, spans, lengths, strict=True)
        )
        student["teacher_student_span_ids"] = student.pop("span_ids")
        return student | {f"teacher_{name}": x for name, x in teacher.items()}

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the texts in both networks' tokens, and of the rows."""
        about = (
            f"{self.student.fingerprint} {self.teacher.fingerprint} {self.length} "
            f"{self.teacher_length} {self.begins}"
        )
        pieces = b" ".join([*self.student_pieces, b"", *self.teacher_pieces])
        return f"{zlib.crc32(pieces, zlib.crc32(about.encode())):08x}"


@checked()
def two_tokenizers(
    student: Documents,
    teacher: Documents,
    student_tokenizer: Tokenizer,
    teacher_tokenizer: Tokenizer,
    *,
    length: int | None = None,
    teacher_length: int | None = None,
) -> TwoTokenizers:
    """Return texts as two networks with different tokenizers read them.

    Args:
        student: the texts, from `tokenize` or `tokenize_chats` with its tokenizer (and
            its template).
        teacher: the same texts with the teacher's.
        student_tokenizer: its tokenizer.
        teacher_tokenizer: likewise.
        length: places of the student's rows; what is longer is cut off, and the spans
            with it. None for the longest text's.
        teacher_length: of the teacher's, likewise.

    Raises:
        ValueError: not as many documents of both, tokens that are none of their
            tokenizer's, a length below 1, or no document with anything to be learnt.
    """
    if len(student) != len(teacher):
        raise ValueError(
            f"student has {len(student)} documents but teacher {len(teacher)}: "
            "tokenise the same texts with both tokenizers"
        )
    readers = student_tokenizer, teacher_tokenizer
    for name, some, reader in zip(
        ("student", "teacher"), (student, teacher), readers, strict=True
    ):
        if some.vocabulary != reader.vocabulary:
            raise ValueError(
                f"{name} has tokens below {some.vocabulary}, but {name}_tokenizer has "
                f"{reader.vocabulary}: give the tokenizer that {some.name!r} were "
                "tokenised with"
            )
    places = [
        max(1, int(some.lengths.max()) - 1) if given is None else given
        for some, given in ((student, length), (teacher, teacher_length))
    ]
    if min(places) < 1:
        raise ValueError(f"length and teacher_length must be at least 1, got {places}")
    begins = [len(tokens_around(reader)[0]) for reader in readers]
    ends = np.minimum(student.offsets[1:], student.offsets[:-1] + places[0] + 1)
    trained = student.trained
    learnt = np.ones(len(student.tokens), bool) if trained is None else trained
    total = np.concatenate([[0], np.cumsum(learnt)])
    kept = np.flatnonzero(total[ends] > total[student.offsets[:-1] + 1])
    if not len(kept):
        raise ValueError(
            f"no document of {student.name!r} has anything to be learnt within "
            f"{places[0]} places: allow more"
        )
    return TwoTokenizers(
        student,
        teacher,
        token_bytes(student_tokenizer),
        token_bytes(teacher_tokenizer),
        (begins[0], begins[1]),
        places[0],
        places[1],
        kept,
    )


def _answers(documents: Documents, document: int, begin: int) -> list[slice]:
    """Return the stretches of a document that are learnt."""
    start, end = documents.offsets[document : document + 2]
    if documents.trained is None:
        return [slice(begin, int(end - start))]
    learnt = documents.trained[start:end].astype(np.int8)
    borders = np.flatnonzero(np.diff(learnt, prepend=0, append=0))
    return [slice(int(a), int(b)) for a, b in borders.reshape(-1, 2)]


@checked()
def predicted(spans: Sequence[Spans], lengths: Sequence[int]) -> list[Spans]:
    """Return spans without those that a row of either network does not predict whole.

    That is what holds a text's first token, or one beyond the row's last label.

    Args:
        spans: of each network's tokens.
        lengths: places of its row.
    """
    lost = [
        number
        for some, length in zip(spans, lengths, strict=True)
        for number in (*some[:1], *some[length + 1 :])
    ]
    return [np.where(np.isin(some, lost), 0, some) for some in spans]


@checked()
def padded_row(
    tokens: Integer[np.ndarray, "tokens"],
    learnt: np.ndarray,
    spans: Spans,
    length: int,
) -> dict[str, np.ndarray]:
    """Return a text as a row of places, of whose labels some are learnt.

    Args:
        tokens: of the text.
        learnt: whether each is.
        spans: of each.
        length: of the row.
    """
    size = min(len(tokens) - 1, length)

    def row(values: np.ndarray) -> np.ndarray:
        found = np.zeros(length, np.int32)
        found[:size] = values[:size]
        return found

    return {
        "input_ids": row(tokens[:-1]),
        "attention_mask": row(np.ones(size)),
        "label": row(tokens[1:]),
        "mask": row(learnt[1:]),
        "span_ids": row(spans[1:]),
    }
