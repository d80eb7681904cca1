"""Documents of tokens one after another, and which of their tokens are learnt."""

import itertools
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer

from jaxkd.arguments import checked
from jaxkd.data.shown import brief
from jaxkd.data.text.tokenizers import Tokenizer, tokens_around
from jaxkd.digests import DIGESTS, verify_digests, write_digests
from jaxkd.files import check_plain, replaced_folder
from jaxkd.untrusted import json_file, mapped_array

FILES = ("tokens.npy", "offsets.npy", "trained.npy", "documents.json", DIGESTS)
"""What `Documents.save` writes."""

CHUNK = 1024
"""Texts that are tokenised at a time, on all cores."""


@checked()
@dataclass(frozen=True)
class Documents:
    """Tokenised documents; memory-mapped files will do.

    Attributes:
        name: for messages and results.
        tokens: of all documents, one after another.
        offsets: where each begins, and where the last ends.
        vocabulary: tokens are below it.
        trained: whether each token is learnt, as the response to a prompt is; None for
            all.

    Raises:
        ValueError: a document without tokens, offsets or ``trained`` that do not fit
            the tokens, or no documents.
    """

    name: str
    tokens: Integer[np.ndarray, "tokens"]
    offsets: Integer[np.ndarray, "documents_and_one"]
    vocabulary: int
    trained: Bool[np.ndarray, "tokens"] | None = None

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    def __post_init__(self):
        if len(self.offsets) < 2:
            raise ValueError(f"texts {self.name!r} hold no document")
        empty = np.flatnonzero(self.lengths < 1)
        if len(empty):
            raise ValueError(
                f"document {empty[0]} of {self.name!r} is empty: leave it out"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens):
            raise ValueError(
                f"offsets of {self.name!r} go from {self.offsets[0]} to "
                f"{self.offsets[-1]}, but there are {len(self.tokens)} tokens"
            )
        if self.trained is not None and len(self.trained) != len(self.tokens):
            raise ValueError(
                f"trained has {len(self.trained)} values, but {self.name!r} has "
                f"{len(self.tokens)} tokens"
            )

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.offsets) - 1

    def __getitem__(self, document: int) -> Integer[np.ndarray, "length"]:
        """Return the tokens of one document."""
        start, end = self.offsets[document : document + 2]
        return self.tokens[start:end]

    @cached_property
    def lengths(self) -> Integer[np.ndarray, "documents"]:
        """Tokens of each document."""
        # Unsigned, an end before its beginning would be a long way on.
        return np.diff(np.asarray(self.offsets, np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the documents' borders, and of some thousand tokens."""
        places = np.linspace(0, len(self.tokens) - 1, 4096, dtype=int)
        total = zlib.crc32(np.ascontiguousarray(self.offsets, np.int64))
        for array in (self.tokens, self.trained):
            if array is not None:
                some = np.ascontiguousarray(array[places], np.int64)
                total = zlib.crc32(some, total)
        return f"{total:08x}"

    def subset(self, positions: Sequence[int] | np.ndarray, name: str) -> "Documents":
        """Return some of the documents.

        Args:
            positions: theirs.
            name: for messages and results.

        Raises:
            ValueError: no position.
        """
        spans = [slice(*self.offsets[i : i + 2]) for i in map(int, positions)]

        def chosen(whole: np.ndarray) -> np.ndarray:
            return np.concatenate([whole[:0], *(whole[span] for span in spans)])

        trained = None if self.trained is None else chosen(self.trained)
        offsets = np.cumsum([0, *(self.lengths[np.asarray(positions, int)])])
        return Documents(name, chosen(self.tokens), offsets, self.vocabulary, trained)

    def save(self, folder: str | Path) -> None:
        """Write the documents, for `load_documents`, with digests of their files.

        Args:
            folder: made if it is missing; documents that are there are replaced.

        Raises:
            OSError: it cannot be written; what was there is kept.
        """
        about = {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "trained": self.trained is not None,
        }
        with replaced_folder(Path(folder), FILES.__contains__) as partial:
            np.save(partial / "tokens.npy", self.tokens)
            np.save(partial / "offsets.npy", self.offsets)
            if self.trained is not None:
                np.save(partial / "trained.npy", self.trained)
            (partial / "documents.json").write_text(json.dumps(about))
            write_digests(partial)


@checked()
def load_documents(folder: str | Path) -> Documents:
    """Return documents that were saved, as arrays on the disk.

    They are read once, to be compared with their digests.

    Args:
        folder: that `Documents.save` wrote.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is damaged.
    """
    folder = Path(folder)
    about = folder / "documents.json"
    if not about.is_file():
        raise FileNotFoundError(f"{about} is missing: write it by Documents.save")
    try:
        verify_digests(folder)
        found = json_file(about)
        kinds = {"name": str, "vocabulary": int, "trained": bool}
        for key, kind in kinds.items():
            if type(found[key]) is not kind:
                raise ValueError(f"{about} has {key} = {found[key]!r:.80}")
        names = ["tokens", "offsets", *(["trained"] if found["trained"] else [])]
        arrays = {name: mapped_array(folder / f"{name}.npy") for name in names}
        wanted = {"tokens": np.integer, "offsets": np.integer, "trained": np.bool_}
        for name, array in arrays.items():
            if array.ndim != 1 or not np.issubdtype(array.dtype, wanted[name]):
                raise ValueError(f"{name} are {array.dtype} of shape {array.shape}")
        check_plain(found["name"], f"the name in {about}")
        tokens, vocabulary = arrays["tokens"], found["vocabulary"]
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise ValueError(
                f"tokens go from {tokens.min()} to {tokens.max()}, but the vocabulary "
                f"is {vocabulary}"
            )
        return Documents(found["name"], vocabulary=found["vocabulary"], **arrays)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{folder} holds damaged documents ({error}): save them again"
        ) from None


@checked()
def tokenize(name: str, texts: Iterable[str], tokenizer: Tokenizer) -> Documents:
    """Return texts as documents, each between the tokens that begin and end a text.

    Args:
        name: for messages and results.
        texts: one a document, such as `data.texts` yields them.
        tokenizer: what it puts before and after a text itself is added (see
            `tokens_around`), and its ``eos`` in any case, where it has one.

    Raises:
        ValueError: no text, or an empty one. It names its place.
    """
    begin, end = tokens_around(tokenizer)
    if not end and tokenizer.eos is not None:
        end = [tokenizer.eos]
    kind = np.min_scalar_type(tokenizer.vocabulary - 1)
    parts, lengths = [np.zeros(0, kind)], [0]
    for chunk in itertools.batched(texts, CHUNK):
        try:
            encoded = tokenizer.encode_batch(chunk)
        except ValueError as error:
            first = len(lengths) - 1
            raise ValueError(
                f"documents {first} to {first + len(chunk) - 1} of {name!r}: {error}"
            ) from None
        for i, found in enumerate(encoded):
            if not found:
                raise ValueError(
                    f"document {len(lengths) - 1} of {name!r} is empty "
                    f"({chunk[i]!r}): leave it out"
                )
            lengths.append(len(begin) + len(found) + len(end))
            parts.append(np.array(begin + found + end, kind))
    offsets = np.cumsum(lengths)
    return Documents(name, np.concatenate(parts), offsets, tokenizer.vocabulary)
