"""The domains of the DDK experiment: four real texts in bytes, or files of tokens."""

import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd import data

BYTES = data.ByteTokenizer(specials=False)


@dataclass(frozen=True)
class Domains:
    """Windows of every domain, by its name.

    Attributes:
        train: to learn from.
        validation: of which the sampler knows the perplexities.
        test: of which the tables do.
        vocabulary: tokens are below it.
    """

    train: dict[str, Any]
    validation: dict[str, Any]
    test: dict[str, Any]
    vocabulary: int


def read_domains(
    names: Iterable[str],
    folder: str,
    vocabulary: int,
    *,
    length: int,
    sizes: tuple[int, ...],
    validation: int,
    test: int,
) -> Domains:
    """Return the domains of a preset.

    Args:
        names: of the domains.
        folder: below JAXKD_DATA, with ``NAME/train.npy`` and ``NAME/test.npy`` of
            tokens; empty for the four texts in bytes.
        vocabulary: of the tokens.
        length: tokens of a window.
        sizes: tokens of each domain's training text; empty for all there are.
        validation: windows of each domain, the first of the held-out text.
        test: windows of each domain after these; 0 for as many as ``validation``.

    Raises:
        FileNotFoundError: a file is missing. It says what to put where.
    """
    parts: tuple[dict[str, Any], ...] = ({}, {}, {})
    for i, name in enumerate(names):
        if folder:
            found = data.token_files(f"{folder}/{name}", length, vocabulary)
            train, held = found.train, found.test
        else:
            train, held = (
                data.text_windows(f"{name}/{kind}", text, length, BYTES)
                for kind, text in zip(("train", "test"), TEXTS[name](), strict=True)
            )
        if sizes:
            train = replace(train, tokens=train.tokens[: sizes[i]])
        middle = validation * length
        end = middle + (test or validation) * length
        parts[0][name] = train
        parts[1][name] = replace(held, tokens=held.tokens[: middle + 1])
        parts[2][name] = replace(held, tokens=held.tokens[middle : end + 1])
    return Domains(*parts, vocabulary)


def _file(name: str, part: data.Part = "file") -> str:
    records = data.open_records(data.data_file(f"text/{name}"), part=part)
    return "\n".join(data.texts(records))


def _shakespeare() -> tuple[str, str]:
    text = _file("tiny_shakespeare.txt.xz")
    border = len(text) * 9 // 10
    return text[:border], text[border:]


def _ag_news() -> tuple[str, str]:
    return _file("agnews_train_subset.tsv.xz"), _file("agnews_test.tsv.xz")


def _wikitext() -> tuple[str, str]:
    return _file("wikitext2_valid.txt.xz"), _file("wikitext2_test.txt.xz")


def _python() -> tuple[str, str]:
    """Return the standard library's modules, every other one held out."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    modules = np.array([file.read_text() for file in files], object)
    return "\n".join(modules[::2]), "\n".join(modules[1::2])


TEXTS = {
    "shakespeare": _shakespeare,
    "ag_news": _ag_news,
    "python": _python,
    "wikitext": _wikitext,
}
"""Domain ``-> (text to train on, text held out)``."""
