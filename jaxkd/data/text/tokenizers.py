"""Text to tokens and back: bytes, or the tokenizer of a Hugging Face folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxkd.arguments import checked, natural
from jaxkd.hub import model_folder
from jaxkd.untrusted import blaming, json_file, read_bytes

LARGEST = 2**28
"""Bytes of a ``tokenizer.json``; that of 262,144 tokens has an eighth."""

PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""Bytes that a byte-level file writes as the character of that number; it writes the
others, in order, as those from 256 on."""

WRITTEN = {
    chr(c): bytes([byte])
    for byte, c in [
        *zip(PRINTED, PRINTED, strict=True),
        *((b, 256 + i) for i, b in enumerate(sorted({*range(256)} - {*PRINTED}))),
    ]
}
"""The byte that each character of a byte-level file stands for."""


@runtime_checkable
class Tokenizer(Protocol):
    """What turns text into tokens: `ByteTokenizer`, `load_tokenizer`'s, or your own.

    Your own may say by ``around`` what it puts before and after a text, see
    `tokens_around`.
    """

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


def tokens_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer itself puts before and after a text.

    That a tokenizer has a ``bos`` does not say that texts begin with it: Qwen's do not,
    Llama's do. A tokenizer of a file has ``around``, as its file says; of one that
    has not, they are ``bos`` and ``eos``.

    Args:
        tokenizer: any.
    """
    ends = ([] if t is None else [t] for t in (tokenizer.bos, tokenizer.eos))
    before, after = getattr(tokenizer, "around", ends)
    return list(before), list(after)


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

    @property
    def pieces(self) -> list[bytes]:
        """The bytes that each token writes, by its number; a special one, its name."""
        names = (b"<bos>", b"<eos>", b"<pad>")
        return [bytes([i]) for i in range(256)] + [*names[: self.vocabulary - 256]]

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
        around: the tokens that the file puts before and after a text.
    """

    def __init__(
        self, tokenizer: Any, bos: int | None, eos: int | None, pad: Any, name: str = ""
    ):
        self._tokenizer = tokenizer
        self._source = f"a text by the tokenizer {name}".strip()
        self.vocabulary: int = max(tokenizer.get_vocab().values()) + 1
        self.bos, self.eos, self.pad = bos, eos, pad
        self.around: tuple[list[int], list[int]] = ([], [])
        # Some files have no token for a letter alone.
        for text in ("a", *tokenizer.get_vocab()):
            found = tokenizer.encode(text)
            kinds = found.special_tokens_mask
            if 0 in kinds:
                first, last = kinds.index(0), len(kinds) - kinds[::-1].index(0)
                self.around = found.ids[:first], found.ids[last:]
                break

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; none is added to begin or end it."""
        with blaming(self._source):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of every text, found on all cores."""
        texts = list(texts)
        with blaming(self._source):
            found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def encode_marked(
        self, stretches: Sequence[tuple[str, bool]]
    ) -> list[tuple[int, bool]]:
        """Return the tokens of one text, and whether each has a marked character.

        Args:
            stretches: of the text, and whether each is marked.
        """
        marks = [marked for text, marked in stretches for _ in text]
        with blaming(self._source):
            found = self._tokenizer.encode(
                "".join(text for text, _ in stretches), add_special_tokens=False
            )
        return [
            (token, any(marks[start:end]))
            for token, (start, end) in zip(found.ids, found.offsets, strict=True)
        ]

    @property
    def pieces(self) -> list[bytes]:
        """The bytes that each token writes, by its number; a special one, its name."""
        parts = (self._tokenizer.decoder, self._tokenizer.pre_tokenizer)
        kinds = b"".join(part.__getstate__() for part in parts if part is not None)
        special = self._tokenizer.get_added_tokens_decoder()
        found = [b""] * self.vocabulary
        for text, number in self._tokenizer.get_vocab().items():
            if number in special:
                found[number] = text.encode()
            elif b"ByteLevel" in kinds:
                found[number] = b"".join(
                    WRITTEN[c] if c in WRITTEN else c.encode() for c in text
                )
            elif byte := re.fullmatch("<0x([0-9A-F]{2})>", text):
                found[number] = bytes.fromhex(byte[1])
            else:
                found[number] = text.replace("\u2581", " ").encode()
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without the special ones.

        Raises:
            ValueError: a token that is none.
        """
        _check_tokens(tokens, self.vocabulary)
        with blaming(self._source):
            return self._tokenizer.decode([int(t) for t in tokens])

    def classifier_tokens(
        self, text: str, second: str | None, length: int
    ) -> tuple[list[int], list[int]]:
        """Return tokens with the file's own special ones (``[CLS] … [SEP]``)."""
        with blaming(self._source):
            found = self._tokenizer.encode(text, second)
            if len(found) > length:
                self._tokenizer.enable_truncation(length)
                found = self._tokenizer.encode(text, second)
                self._tokenizer.no_truncation()
        return found.ids, found.type_ids


@checked()
def load_tokenizer(folder: str | Path, *, revision: str | None = None) -> FileTokenizer:
    """Return the tokenizer of a Hugging Face folder.

    The folder has a ``tokenizer.json``, and says in ``tokenizer_config.json`` or
    ``special_tokens_map.json`` which tokens begin, end and fill up a text, and perhaps
    by ``add_bos_token`` and ``add_eos_token`` whether texts are given these, and by
    ``add_prefix_space`` a space before; where it does, the file's own rules do not
    count, as in transformers. Truncation and padding that the file asks for are
    switched off: `jaxkd.data` does both.

    Args:
        folder: of the tokenizer, which is often the model's, or a model's name on the
            Hugging Face hub.
        revision: of the hub's model; None for the newest.

    Raises:
        FileNotFoundError: it has no ``tokenizer.json``.
        ValueError: a file that is damaged, or a special token that is none.
    """
    from tokenizers import Tokenizer as File

    folder = model_folder(folder, revision)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: save the model's fast tokenizer there "
            "(transformers' save_pretrained writes it)"
        )
    content = read_bytes(path, LARGEST)
    try:
        # A file may be of no use, and say so by an error or by a panic.
        with blaming(str(path)):
            tokenizer = File.from_buffer(content)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            highest = max(tokenizer.get_vocab().values())
            if highest >= 2**31:
                raise ValueError(f"it has the token {highest}, not below 2**31")
    except ValueError as error:
        raise ValueError(
            f"{path} is no tokenizer that can be read ({error}): fetch it again"
        ) from None
    names: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        names |= _read_json(path.with_name(file))
    found = []
    for kind in ("bos_token", "eos_token", "pad_token"):
        token = names.get(kind)
        # Older folders write a token with the rules of its stripping.
        token = token.get("content", token) if isinstance(token, dict) else token
        if not isinstance(token, str | None):
            raise ValueError(f"{path.parent}: {kind} is {token!r:.80}, no text")
        number = None if token is None else tokenizer.token_to_id(token)
        if token is not None and number is None:
            raise ValueError(
                f"{path} has no token {token!r}, which the folder names as its {kind}: "
                "the files are of different tokenizers"
            )
        found.append(number)
    with blaming(f"{path} or its tokenizer_config.json"):
        _configure(tokenizer, names, *found[:2])
        return FileTokenizer(tokenizer, *found, name=str(path))


def _configure(
    tokenizer: Any, names: dict[str, Any], bos: int | None, eos: int | None
) -> None:
    """Let ``tokenizer_config.json`` overrule what the tokenizer's file adds to texts.

    As transformers 5 does: `TokenizersBackend.update_post_processor`, and GPT-2's class
    for the space.
    """
    from tokenizers import pre_tokenizers, processors

    if "add_bos_token" in names or "add_eos_token" in names:
        begin, end = (
            [tokenizer.id_to_token(number)]
            if names.get(f"add_{kind}_token") and number is not None
            else []
            for kind, number in (("bos", bos), ("eos", eos))
        )
        single, second = [*begin, "$A", *end], [*begin, "$B", *end]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(f"{piece}:1" for piece in second)],
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in {*begin, *end}],
        )
    before = tokenizer.pre_tokenizer
    if "add_prefix_space" in names and isinstance(before, pre_tokenizers.ByteLevel):
        before.add_prefix_space = bool(names["add_prefix_space"])
        tokenizer.pre_tokenizer = before


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json_file(path)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not an object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from None
    return found


def _check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ValueError(
                f"token {token} is none of the tokenizer's, which are 0 to "
                f"{vocabulary - 1}: the tokens are another tokenizer's"
            )
