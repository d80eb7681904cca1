"""Text for language models: a long row of tokens, read through windows."""

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Integer

from jaxkd.arguments import checked, integer
from jaxkd.data.datasets import data_file
from jaxkd.data.shown import brief
from jaxkd.data.sources import Dataset
from jaxkd.untrusted import decompressed, mapped_array


@checked(length=integer, stride=integer)
@dataclass(frozen=True)
class Windows:
    """Windows of a row of tokens as examples, each token's label being the next one.

    Attributes:
        name: for messages and results.
        tokens: of the whole text; a memory-mapped file will do.
        length: tokens of a window.
        classes: tokens are below it.
        stride: tokens between the starts of two windows; None for ``length``, so that
            every token is a label once.

    Raises:
        ValueError: too few tokens for one window, tokens that are no integers, or a
            length or stride below 1.
    """

    name: str
    tokens: Integer[np.ndarray, "tokens"]
    length: int
    classes: int
    stride: int | None = None

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    def __post_init__(self):
        if self.length < 1 or (self.stride is not None and self.stride < 1):
            raise ValueError(
                f"text {self.name!r}: length and stride must be at least 1, got "
                f"{self.length} and {self.stride}"
            )
        if not np.issubdtype(self.tokens.dtype, np.integer) or self.tokens.ndim != 1:
            raise ValueError(
                f"text {self.name!r}: tokens must be a row of integers, got "
                f"{self.tokens.dtype} of shape {self.tokens.shape}"
            )
        if len(self.tokens) <= self.length:
            raise ValueError(
                f"text {self.name!r} has {len(self.tokens)} tokens, but a window of "
                f"{self.length} and the label of its last need {self.length + 1}"
            )

    def __len__(self) -> int:
        """Return the number of windows."""
        step = self.stride or self.length
        return (len(self.tokens) - self.length - 1) // step + 1

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return ``input_ids`` and ``label`` (windows, length), and ``index``.

        Raises:
            ValueError: a token that is no class. It names the text and the token.
        """
        start = np.asarray(positions)[:, None] * (self.stride or self.length)
        found = self.tokens[start + np.arange(self.length + 1)].astype(np.int32)
        if found.min() < 0 or found.max() >= self.classes:
            raise ValueError(
                f"text {self.name!r} has tokens from {found.min()} to {found.max()}, "
                f"but its {self.classes} classes are 0 to {self.classes - 1}: it was "
                "tokenised for another model"
            )
        return {
            "input_ids": found[:, :-1],
            "label": found[:, 1:],
            "index": np.asarray(positions, np.int32),
        }

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the sizes, and of a thousand tokens all over the text."""
        places = np.linspace(0, len(self.tokens) - 1, 1000, dtype=int)
        sizes = f"{len(self.tokens)} {self.length} {self.classes} {self.stride}"
        total = zlib.crc32(sizes.encode())
        some = np.ascontiguousarray(self.tokens[places], np.int64)
        return f"{zlib.crc32(some, total):08x}"


@checked()
def tiny_shakespeare(length: int) -> Dataset:
    """Return the characters of Karpathy's tiny Shakespeare; its last tenth is the test.

    The file is ``$JAXKD_DATA/text/tiny_shakespeare.txt.xz``, 1,115,394 characters of 65
    kinds, numbered in the order of their code points.

    Args:
        length: characters of a window.
    """
    path = data_file("text/tiny_shakespeare.txt.xz")
    try:
        text = decompressed(path).decode()
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from None
    symbols, tokens = np.unique(np.array(list(text)), return_inverse=True)
    return _split("tiny_shakespeare", tokens.astype(np.uint8), length, len(symbols))


def _split(name: str, tokens: Any, length: int, classes: int) -> Dataset:
    first = len(tokens) * 9 // 10
    return Dataset(
        Windows(f"{name}/train", tokens[:first], length, classes),
        Windows(f"{name}/test", tokens[first:], length, classes),
    )


@checked()
def token_files(folder: str, length: int, classes: int) -> Dataset:
    """Return text that was tokenised before, from files that are not read at once.

    They are ``$JAXKD_DATA/FOLDER/train.npy`` and ``test.npy``, each one row of unsigned
    integers as ``numpy.save`` writes it.

    Args:
        folder: of the two files.
        length: tokens of a window.
        classes: the tokenizer's vocabulary.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that is not such a row.
    """
    windows = []
    for split in ("train", "test"):
        path = data_file(f"{folder}/{split}.npy")
        try:
            tokens = mapped_array(path)
        except ValueError as error:
            raise ValueError(
                f"{path} is no file of numpy.save ({error}): write one row of tokens"
            ) from None
        windows.append(Windows(f"{folder}/{split}", tokens, length, classes))
    return Dataset(*windows)
