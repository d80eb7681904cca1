"""Texts and conversations of users' files as rows to train on and rows held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd import data
from jaxkd.data.records import Record
from jaxkd.data.text.instructions import ChatTemplate
from jaxkd.data.text.templates import JinjaTemplate

TEMPLATES = {"chatml": data.CHATML, "llama3": data.LLAMA3, "plain": data.PLAIN}
"""Chat templates by name, for models that have none."""

Template = ChatTemplate | JinjaTemplate


@dataclass(frozen=True)
class Texts:
    """What a run trains on, or what is held out of it.

    Attributes:
        documents: tokens, and which of them are learnt.
        rows: of packed documents.
        prompts: of conversations; None of plain texts.
    """

    documents: data.Documents
    rows: data.Packed
    prompts: data.Prompts | None


def read_texts(
    paths: Sequence[str | Path],
    validation: str | Path | None,
    share: float,
    seed: int,
    tokenized: Callable[[str, Any], Texts],
) -> tuple[Texts, Texts]:
    """Return the texts to train on and those held out.

    Args:
        paths: of the files or folders, as `data.open_records` reads them.
        validation: the file that is held out; None for a share of the records.
        share: of the records that is held out, at least one.
        seed: of their choice.
        tokenized: ``(name, records) -> Texts``.

    Raises:
        ValueError: no records, or one alone where a share is held out.
    """
    name = ", ".join(Path(path).name for path in paths)
    records = data.open_records(*paths)
    if not len(records):
        raise ValueError(f"{name} is empty: give a record a line")
    if validation is not None:
        held_out = data.open_records(validation)
        return tokenized(name, records), tokenized(Path(validation).name, held_out)
    if len(records) < 2:
        raise ValueError(
            f"{name} has one record, and none could be held out: give more, or other "
            "records by --validation"
        )
    order = np.random.default_rng(seed).permutation(len(records))
    kept = min(max(1, round(share * len(records))), len(records) - 1)
    parts = (np.sort(order[kept:]), np.sort(order[:kept]))
    train, rest = (_Chosen(records, part) for part in parts)
    return tokenized(name, train), tokenized(f"{name}, held out", rest)


class _Chosen(Sequence):
    """Some records, read as they are asked for."""

    def __init__(self, records: Sequence[Record], positions: np.ndarray):
        self._records, self._positions = records, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: Any) -> Record:
        return self._records[int(self._positions[position])]


def tokenize_records(
    name: str,
    records: Sequence[Record],
    tokenizer: data.Tokenizer,
    template: Callable[[], Template],
    *,
    length: int,
    answer_length: int,
    alone: bool,
) -> Texts:
    """Return records as rows.

    Args:
        name: for messages and the model's card.
        records: with ``messages``, with ``prompt`` and ``response``, or with ``text``.
        tokenizer: of the student.
        template: of conversations, asked for where there are any.
        length: of the rows.
        answer_length: of answers to prompts; prompts have the rest of ``length``.
        alone: whether each document has a row of its own.
    """
    chats = "text" not in records[0]
    if chats:
        documents = data.tokenize_chats(name, records, tokenizer, template())
    else:
        documents = data.tokenize(name, data.texts(records), tokenizer)
    rows = data.pack(documents, length, alone=alone)
    prompts = None
    if chats:
        prompts = data.prompts_of_chats(
            documents, length - answer_length, answer_length, tokenizer.pad
        )
        # Rows only as long as the longest needs.
        longest = int(prompts.documents.lengths.max())
        prompts = replace(prompts, length=longest)
    return Texts(documents, rows, prompts)


def chat_template(given: str | None, folder: Path) -> Template:
    """Return the chat template that a recipe names, or that of the student's folder.

    Args:
        given: a name of `TEMPLATES`, or a file of Jinja's; None for the folder's.
        folder: of the student.

    Raises:
        ValueError: there is none. It says how to give one.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    if given is None:
        try:
            return data.load_chat_template(folder)
        except FileNotFoundError:
            raise ValueError(
                f"{folder} has no chat template, which says how a conversation is "
                f"written: give --template {'|'.join(TEMPLATES)}, or a file of Jinja's "
                "such as chat_template.jinja of a model that was trained alike"
            ) from None
    path = Path(given)
    if not path.is_file():
        raise ValueError(
            f"template {given!r} is neither a file nor one of {', '.join(TEMPLATES)}"
        )
    return data.load_chat_template(folder, path)
