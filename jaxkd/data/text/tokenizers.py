"""Text to tokens and back: bytes, or the tokenizer of a Hugging Face folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxkd.arguments import checked, natural


@runtime_checkable
class Tokenizer(Protocol):
    """What turns text into tokens: `ByteTokenizer`, `load_tokenizer`'s, or your own."""

    @property
    def vocabulary(self) -> int:
        """Tokens are below it."""
        ...

    @property
    def bos(self) -> int | None:
        """The token that begins a text; None where there is none."""
        ...

    @property
    def eos(self) -> int | None:
        """The token that ends a text; None where there is none."""
        ...

    @property
    def pad(self) -> int | None:
        """The token that fills rows up; None where there is none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; none is added to begin or end it."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of every text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without the special ones."""
        ...

    def classifier_tokens(
        self, text: str, second: str | None, length: int
    ) -> tuple[list[int], list[int]]:
        """Return the tokens of a text or a pair as a classifier reads it, and types.

        They have the special ones between and around them. Types are 0 for the first
        text and 1 for the second.

        Args:
            text: the first or only one.
            second: the other of a pair, or None.
            length: of the result at most; the end of the longer text is left out.
        """
        ...


@checked()
@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 255, and begin, end and padding after them.

    Attributes:
        specials: whether there are those three (256, 257, 258).
    """

    specials: bool = True

    @property
    def vocabulary(self) -> int:
        """Tokens are below it."""
        return 259 if self.specials else 256

    @property
    def bos(self) -> int | None:
        """The token that begins a text."""
        return 256 if self.specials else None

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return 257 if self.specials else None

    @property
    def pad(self) -> int | None:
        """The token that fills rows up."""
        return 258 if self.specials else None

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the bytes of every text."""
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of bytes; those that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: a token that is none.
        """
        _check_tokens(tokens, self.vocabulary)
        return bytes(t for t in tokens if t < 256).decode(errors="replace")

    def classifier_tokens(
        self, text: str, second: str | None, length: int
    ) -> tuple[list[int], list[int]]:
        """Return the bytes between begin and end, a second text before another end."""
        begin, end = ([256], [257]) if self.specials else ([], [])
        parts = [self.encode(part) for part in (text, second) if part is not None]
        room = length - len(begin) - len(parts) * len(end)
        while sum(map(len, parts)) > max(room, 0):
            max(parts, key=len).pop()
        rows = [part + end for part in parts]
        rows[0] = begin + rows[0]
        types = [i for i, row in enumerate(rows) for _ in row]
        return [token for row in rows for token in row], types


@checked(eos=natural, bos=natural, pad=natural)
class FileTokenizer:
    """The tokenizer of a ``tokenizer.json``; see `load_tokenizer`.

    Attributes:
        vocabulary: tokens are below it; a model's embedding may be larger.
        bos: the token that begins a text, or None.
        eos: the token that ends a text, or None.
        pad: the token that fills rows up, or None.
    """

    def __init__(self, tokenizer: Any, bos: int | None, eos: int | None, pad: Any):
        self._tokenizer = tokenizer
        self.vocabulary: int = max(tokenizer.get_vocab().values()) + 1
        self.bos, self.eos, self.pad = bos, eos, pad

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; none is added to begin or end it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of every text, found on all cores."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without the special ones.

        Raises:
            ValueError: a token that is none.
        """
        _check_tokens(tokens, self.vocabulary)
        return self._tokenizer.decode([int(t) for t in tokens])

    def classifier_tokens(
        self, text: str, second: str | None, length: int
    ) -> tuple[list[int], list[int]]:
        """Return tokens with the file's own special ones (``[CLS] … [SEP]``)."""
        found = self._tokenizer.encode(text, second)
        if len(found) > length:
            self._tokenizer.enable_truncation(length)
            found = self._tokenizer.encode(text, second)
            self._tokenizer.no_truncation()
        return found.ids, found.type_ids


@checked()
def load_tokenizer(folder: str | Path) -> FileTokenizer:
    """Return the tokenizer of a Hugging Face folder.

    The folder has a ``tokenizer.json``, and says in ``tokenizer_config.json`` or
    ``special_tokens_map.json`` which tokens begin, end and fill up a text. Truncation
    and padding that the file asks for are switched off: `jaxkd.data` does both.

    Args:
        folder: of the tokenizer, which is often the model's.

    Raises:
        FileNotFoundError: it has no ``tokenizer.json``.
        ValueError: a file that is damaged, or a special token that is none.
    """
    from tokenizers import Tokenizer as File

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: save the model's fast tokenizer there "
            "(transformers' save_pretrained writes it)"
        )
    try:
        tokenizer = File.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(
            f"{path} is no tokenizer that can be read ({error}): fetch it again"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        names |= _read_json(path.with_name(file))
    found = []
    for kind in ("bos_token", "eos_token", "pad_token"):
        token = names.get(kind)
        # Older folders write a token with the rules of its stripping.
        token = token["content"] if isinstance(token, dict) else token
        number = None if token is None else tokenizer.token_to_id(token)
        if token is not None and number is None:
            raise ValueError(
                f"{path} has no token {token!r}, which the folder names as its {kind}: "
                "the files are of different tokenizers"
            )
        found.append(number)
    return FileTokenizer(tokenizer, *found)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from None


def _check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ValueError(
                f"token {token} is none of the tokenizer's, which are 0 to "
                f"{vocabulary - 1}: the tokens are another tokenizer's"
            )
