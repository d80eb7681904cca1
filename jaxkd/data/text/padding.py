"""Texts of different lengths in one array: prompts to answer, and texts to classify."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Integer

from jaxkd.arguments import checked, natural
from jaxkd.checks import check_labels
from jaxkd.data.shown import brief
from jaxkd.data.text.documents import Documents
from jaxkd.data.text.tokenizers import Tokenizer


@checked(pad=natural)
def left_pad(
    prompts: Sequence[Sequence[int]], pad: int | None, length: int | None = None
) -> dict[str, np.ndarray]:
    """Return prompts that end together, so that all are continued at the same place.

    Args:
        prompts: tokens of each.
        pad: the token to put before; None for 0. No other token sees it.
        length: of all; None for the longest's.

    Returns:
        ``input_ids`` and ``attention_mask`` (0 for padding), (prompts, length), as
        `jaxkd.generation.generate` takes them.

    Raises:
        ValueError: no prompts, an empty one, or one that is longer than ``length``.
    """
    sizes = [len(prompt) for prompt in prompts]
    if not sizes or not min(sizes):
        raise ValueError(
            f"prompt {sizes.index(0)} is empty: begin it with the tokenizer's bos"
            if sizes
            else "prompts is empty: give at least one"
        )
    length = max(sizes) if length is None else length
    if max(sizes) > length:
        raise ValueError(
            f"prompt {int(np.argmax(sizes))} has {max(sizes)} tokens, more than length "
            f"{length}: cut its begin off, or allow more"
        )
    ids = np.full((len(sizes), length), 0 if pad is None else pad, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[length - len(prompt) :] = prompt
    real = np.arange(length) >= length - np.array(sizes)[:, None]
    return {"input_ids": ids, "attention_mask": real.astype(np.int32)}


@checked(pad=natural)
@dataclass(frozen=True)
class Prompts:
    """Prompts as examples, with padding before them, and what answers them.

    `prompts_of_chats` makes them of conversations.

    Attributes:
        documents: the prompts.
        length: of all rows.
        pad: the token to put before; None for 0.
        responses: to the prompts, if there are any.
        response_length: of all rows of these; what is longer is cut off.

    Raises:
        ValueError: a prompt that is longer, or responses that are not one a prompt.
    """

    documents: Documents
    length: int
    pad: int | None
    responses: Documents | None = None
    response_length: int = 0

    def __post_init__(self):
        if self.responses is not None and (
            len(self.responses) != len(self.documents) or self.response_length < 1
        ):
            raise ValueError(
                f"{self.name!r} has {len(self.documents)} prompts, "
                f"{len(self.responses)} responses and response_length "
                f"{self.response_length}: give one response a prompt, and room for it"
            )
        longest = int(self.documents.lengths.max())
        if longest > self.length:
            raise ValueError(
                f"prompt {int(np.argmax(self.documents.lengths))} of {self.name!r} has "
                f"{longest} tokens, more than length {self.length}: leave it out, or "
                "allow more"
            )

    @property
    def name(self) -> str:
        """For messages and results."""
        return self.documents.name

    @property
    def classes(self) -> int:
        """Tokens are below it."""
        return self.documents.vocabulary

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.documents)

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the prompts as `left_pad` does, the responses, and ``index``.

        These are ``response_ids`` and ``response_mask`` (prompts, response length),
        with padding after them, as `jaxkd.programs.on_policy` reads them.
        """
        rows = [self.documents[int(position)] for position in positions]
        batch = left_pad([row.tolist() for row in rows], self.pad, self.length)
        if self.responses is not None:
            shape = (len(rows), self.response_length)
            ids = np.full(shape, self.pad or 0, np.int32)
            mask = np.zeros(shape, np.int32)
            for row, position in enumerate(positions):
                response = self.responses[int(position)][: self.response_length]
                ids[row, : len(response)] = response
                mask[row, : len(response)] = 1
            batch |= {"response_ids": ids, "response_mask": mask}
        return {**batch, "index": np.asarray(positions, np.int32)}

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the prompts and the length."""
        about = f"{self.documents.fingerprint} {self.length} {self.pad}"
        if self.responses is not None:
            about += f" {self.responses.fingerprint} {self.response_length}"
        return f"{zlib.crc32(about.encode()):08x}"


@checked(pad=natural)
def prompts_of_chats(
    chats: Documents, length: int, response_length: int, pad: int | None
) -> Prompts:
    """Return conversations as prompts, and the last answers as responses to them.

    Conversations whose prompts are too long are left out.

    Args:
        chats: from `tokenize_chats`.
        length: of the prompts at most.
        response_length: of the answers; longer ones are cut off.
        pad: the token that fills rows up; None for 0.

    Raises:
        ValueError: documents that are all learnt, or no prompt short enough.
    """
    if chats.trained is None:
        raise ValueError(
            f"{chats.name!r} has no answers apart from the rest: make it by "
            "tokenize_chats"
        )
    prompts, responses = [], []
    for document, start in enumerate(chats.offsets[:-1]):
        tokens = chats[document]
        learnt = chats.trained[start : start + len(tokens)]
        answer = 1 + max(np.flatnonzero(~learnt), default=-1)
        if 0 < answer <= length:
            prompts.append(tokens[:answer])
            responses.append(tokens[answer:])
    if not prompts:
        raise ValueError(
            f"no prompt of {chats.name!r} has at most {length} tokens: "
            "allow more (a recipe's length, less its answer_length)"
        )
    documents, answers = (
        Documents(
            chats.name,
            np.concatenate(rows),
            np.cumsum([0, *map(len, rows)]),
            chats.vocabulary,
        )
        for rows in (prompts, responses)
    )
    return Prompts(documents, length, pad, answers, response_length)


@checked(pad=natural)
@dataclass(frozen=True)
class LabelledTexts:
    """Texts, or pairs of them, and the class of each.

    Attributes:
        documents: tokens of each.
        types: of each token, 0 for the first text and 1 for the second; None where
            there are no pairs.
        label: of each.
        classes: labels are below it.
        lengths: that rows can have, rising: a batch has the first that holds all its
            texts. Each length is compiled once. Several processes need a single one,
            for each pads its own part of a batch.
        pad: the token to put after a text; None for 0.

    Raises:
        ValueError: labels that do not fit, a text that is longer than the last length,
            lengths that do not rise, or several of them on several processes.
    """

    documents: Documents
    label: Integer[np.ndarray, "documents"]
    classes: int
    lengths: tuple[int, ...]
    pad: int | None
    types: Integer[np.ndarray, "tokens"] | None = None

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    def __post_init__(self):
        if len(self.label) != len(self.documents):
            raise ValueError(
                f"{self.name!r} has {len(self.documents)} texts but {len(self.label)} "
                "labels"
            )
        check_labels(f"label of {self.name!r}", self.label, self.classes)
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths must rise, got {self.lengths}")
        if len(self.lengths) > 1 and jax.process_count() > 1:
            raise ValueError(
                f"lengths is {self.lengths}, but {jax.process_count()} processes share "
                f"every batch: give the last alone, ({max(self.lengths)},)"
            )
        longest = int(self.documents.lengths.max())
        if longest > max(self.lengths):
            raise ValueError(
                f"text {int(np.argmax(self.documents.lengths))} of {self.name!r} has "
                f"{longest} tokens, more than the last of lengths {self.lengths}"
            )

    @property
    def name(self) -> str:
        """For messages and results."""
        return self.documents.name

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.documents)

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the texts with padding after them, their labels, and ``index``.

        ``input_ids``, ``attention_mask`` (0 for padding) and, of pairs,
        ``token_type_ids`` (texts, length).
        """
        positions = np.asarray(positions, np.int32)
        sizes = self.documents.lengths[positions]
        length = min(size for size in self.lengths if size >= sizes.max())
        real = np.arange(length) < sizes[:, None]
        # Where padding is, any token is read.
        where = self.documents.offsets[:-1][positions][:, None] + np.arange(length)
        where = np.where(real, where, 0)
        ids = np.where(real, self.documents.tokens[where], self.pad or 0)
        batch = {
            "input_ids": ids.astype(np.int32),
            "attention_mask": real.astype(np.int32),
            "label": self.label[positions].astype(np.int32),
            "index": positions,
        }
        if self.types is not None:
            types = np.where(real, self.types[where], 0)
            batch["token_type_ids"] = types.astype(np.int32)
        return batch

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the texts, labels and lengths."""
        about = f"{self.documents.fingerprint} {self.lengths} {self.pad}"
        label = np.ascontiguousarray(self.label, np.int64)
        return f"{zlib.crc32(label, zlib.crc32(about.encode())):08x}"


@checked()
def label_texts(
    name: str,
    texts: Iterable[str],
    labels: Iterable[int],
    tokenizer: Tokenizer,
    *,
    classes: int,
    lengths: tuple[int, ...],
    seconds: Iterable[str] | None = None,
) -> LabelledTexts:
    """Return texts, or pairs of them, as a classifier reads them.

    Args:
        name: for messages and results.
        texts: the first or only ones.
        labels: the class of each.
        tokenizer: puts its special tokens around them.
        classes: labels are below it.
        lengths: that rows can have, rising; texts that are longer than the last are cut
            off.
        seconds: the other texts of the pairs.

    Raises:
        ValueError: no texts, an empty one, or not as many of each.
    """
    texts = list(texts)
    others = [None] * len(texts) if seconds is None else list(seconds)
    if len(others) != len(texts):
        raise ValueError(
            f"{name!r} has {len(texts)} texts but {len(others)} seconds: give pairs"
        )
    rows, types = [], []
    for i, pair in enumerate(zip(texts, others, strict=True)):
        if not all(part is None or part.strip() for part in pair):
            raise ValueError(f"text {i} of {name!r} is empty ({pair}): leave it out")
        row, kind = tokenizer.classifier_tokens(*pair, lengths[-1])
        rows.append(row)
        types.append(kind)
    tokens = np.concatenate(rows or [[]])
    documents = Documents(
        name,
        tokens.astype(np.min_scalar_type(tokenizer.vocabulary - 1)),
        np.cumsum([0, *map(len, rows)]),
        tokenizer.vocabulary,
    )
    return LabelledTexts(
        documents,
        np.array(list(labels), np.int32),
        classes,
        lengths,
        tokenizer.pad,
        None if seconds is None else np.concatenate(types).astype(np.uint8),
    )
