"""Texts and conversations of users' files as rows to train on and rows held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxkd import data
from jaxkd.arguments import checked
from jaxkd.data.records import Record
from jaxkd.data.text.instructions import ChatTemplate
from jaxkd.data.text.templates import JinjaTemplate

TEMPLATES = {"chatml": data.CHATML, "llama3": data.LLAMA3, "plain": data.PLAIN}
"""Chat templates by name, for models that have none."""

Template = ChatTemplate | JinjaTemplate
Records = Sequence[Record]


@checked()
@dataclass(frozen=True)
class Texts:
    """What a run trains on, or what is held out of it.

    Attributes:
        documents: tokens, and which of them are learnt.
        rows: to train or to evaluate on.
    """

    documents: data.Documents
    rows: data.Examples

    def prompts(
        self, length: int, answer_length: int, pad: int | None
    ) -> data.Prompts | None:
        """Return the conversations as prompts with answers; None of plain texts.

        Args:
            length: of a prompt and an answer together, at most.
            answer_length: of an answer.
            pad: the token that fills rows up.
        """
        if self.documents.trained is None:
            return None
        found = data.prompts_of_chats(
            self.documents, length - answer_length, answer_length, pad
        )
        # Rows only as long as the longest needs.
        return replace(found, length=int(found.documents.lengths.max()))

    def __str__(self) -> str:
        """Return how much there is."""
        found, trained = self.documents, self.documents.trained
        learnt = len(found.tokens) if trained is None else int(trained.sum())
        return (
            f"{found.name}: {len(found):,} records of {len(found.tokens):,} tokens, "
            f"{learnt:,} of them learnt, in {len(self.rows):,} rows"
        )


@checked()
def documents_of(
    name: str,
    records: Records,
    tokenizer: data.Tokenizer,
    template: Callable[[], Template],
    field: str = "text",
) -> data.Documents:
    """Return conversations, or texts, as documents.

    Args:
        name: for messages.
        records: with ``messages``, with ``prompt`` and ``response``, or with a text.
        tokenizer: of the model.
        template: of conversations, asked for where there are any.
        field: of a text.
    """
    chat = {"messages", "prompt", "response"} & {*records[0]}
    if chat and field not in records[0]:
        return data.tokenize_chats(name, records, tokenizer, template())
    return data.tokenize(name, data.texts(records, field), tokenizer)


@checked()
@dataclass(frozen=True)
class Reader:
    """How files become rows.

    Attributes:
        tokenizer: of the student.
        template: of conversations, asked for where there are any.
        length: of the rows.
        alone: whether each document has a row of its own.
        teacher: tokenizer and template of a teacher that reads in tokens of its own.
    """

    tokenizer: data.Tokenizer
    template: Callable[[], Template]
    length: int
    alone: bool
    teacher: tuple[data.Tokenizer, Callable[[], Template]] | None = None

    def read(
        self,
        paths: Sequence[str | Path],
        validation: str | Path | None,
        share: float,
        seed: int,
        answered: Callable[[data.Examples], data.Examples],
    ) -> tuple[Texts, Texts]:
        """Return the texts to train on and those held out.

        Args:
            paths: of the files or folders, as `data.open_records` reads them, or of one
                folder of `data.Documents.save`.
            validation: the file that is held out; None for a share.
            share: of the records that is held out, at least one.
            seed: of their choice.
            answered: rows ``->`` the same with what a teacher elsewhere says of them.

        Raises:
            ValueError: no records, or one alone where a share is held out.
        """
        name = ", ".join(Path(path).name for path in paths)
        if len(paths) == 1 and (Path(paths[0]) / "documents.json").is_file():
            return self._saved(data.load_documents(paths[0]), share, seed, answered)
        records = _records(name, paths)
        documents = documents_of(name, records, self.tokenizer, self.template)
        if validation is None:
            kept, held_out = _split(name, len(documents), share, seed)
            train = documents.subset(kept, name)
            rest = documents.subset(held_out, f"{name}, held out")
        else:
            kept, train = None, documents
            rest = documents_of(
                Path(validation).name,
                _records(str(validation), [validation]),
                self.tokenizer,
                self.template,
            )
        rows: data.Examples = answered(self._packed(train))
        if self.teacher is not None:
            theirs = documents_of(name, records, *self.teacher)
            if kept is not None:
                theirs = theirs.subset(kept, name)
            readers = self.tokenizer, self.teacher[0]
            rows = data.two_tokenizers(
                train,
                theirs,
                *readers,
                length=_places(train, self.length),
                teacher_length=_places(theirs, self.length),
            )
        return Texts(train, rows), Texts(rest, self._packed(rest))

    def _packed(self, documents: data.Documents) -> data.Packed:
        return data.pack(documents, self.length, alone=self.alone)

    def _saved(
        self,
        documents: data.Documents,
        share: float,
        seed: int,
        answered: Callable[[data.Examples], data.Examples],
    ) -> tuple[Texts, Texts]:
        """Return some rows of documents and the others: caches are of whole rows."""
        rows = self._packed(documents)
        whole = answered(rows)
        kept, held_out = _split(documents.name, len(rows), share, seed)
        return (
            Texts(documents, data.Subset(whole, kept)),
            Texts(documents, data.Subset(rows, held_out)),
        )


def _records(name: str, paths: Sequence[str | Path]) -> Records:
    records = data.open_records(*paths)
    if not len(records):
        raise ValueError(f"{name} is empty: give a record a line")
    return records


def _places(documents: data.Documents, length: int) -> int:
    """Return the places of a row that the longest document needs, at most a length."""
    return min(length, max(1, int(documents.lengths.max()) - 1))


def _split(
    name: str, items: int, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of what is trained on, and of what is held out."""
    if items < 2:
        raise ValueError(
            f"{name} is one alone, and none could be held out: give more, or other "
            "records by --validation"
        )
    order = np.random.default_rng(seed).permutation(items)
    count = min(max(1, round(share * items)), items - 1)
    return np.sort(order[count:]), np.sort(order[:count])


@checked()
def chat_template(given: str | None, folder: Path) -> Template:
    """Return the chat template that is named, or that of a model's folder.

    Args:
        given: a name of `TEMPLATES`, or a file of Jinja's; None for the folder's.
        folder: of the model.

    Raises:
        ValueError: there is none. It says how to give one.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    if given is not None and not Path(given).is_file():
        raise ValueError(
            f"template {given!r} is neither a file nor one of {', '.join(TEMPLATES)}"
        )
    try:
        return data.load_chat_template(folder, given)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no chat template, which says how a conversation is written: "
            f"give --template {'|'.join(TEMPLATES)}, or a file of Jinja's such as the "
            "chat_template.jinja of a model that was trained alike"
        ) from None
