"""The domains of the DDK experiment: four real texts in bytes, or files of tokens."""

import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd import data

BYTES = data.ByteTokenizer(specials=False)


@dataclass(frozen=True)
class DomainsConfig:
    """Domains of text.

    Attributes:
        names: of `TEXTS`, or of folders.
        corpus: folder of theirs below JAXKD_DATA, with ``NAME/train.npy`` and
            ``NAME/test.npy`` of tokens; empty for texts in bytes.
        vocabulary: of the tokens.
        sizes: tokens of each domain's training text; empty for all.
        length: tokens of a window.
        validation_windows: of each domain, the first of the held-out text.
        test_windows: of each after these; 0 for as many.
    """

    names: tuple[str, ...] = ("shakespeare", "ag_news", "python", "wikitext")
    corpus: str = ""
    vocabulary: int = 256
    sizes: tuple[int, ...] = (600_000, 250_000, 100_000, 50_000)
    length: int = 64
    validation_windows: int = 128
    test_windows: int = 256

    def load(self) -> "Domains":
        """Return the windows.

        Raises:
            FileNotFoundError: a file is missing. It says what to put where.
        """
        middle = self.validation_windows * self.length
        end = middle + (self.test_windows or self.validation_windows) * self.length
        found = Domains({}, {}, {})
        for i, name in enumerate(self.names):
            train, held = self._windows(name)
            kept = slice(self.sizes[i] if self.sizes else None)
            found.train[name] = replace(train, tokens=train.tokens[kept])
            for part, start, stop in (
                (found.validation, 0, middle),
                (found.test, middle, end),
            ):
                part[name] = replace(held, tokens=held.tokens[start : stop + 1])
        return found

    def _windows(self, name: str) -> tuple[data.Windows, data.Windows]:
        if self.corpus:
            folder = f"{self.corpus}/{name}"
            found: Any = data.token_files(folder, self.length, self.vocabulary)
            return found.train, found.test
        train, held = TEXTS[name]()
        return (
            data.text_windows(f"{name}/train", train, self.length, BYTES),
            data.text_windows(f"{name}/test", held, self.length, BYTES),
        )


@dataclass(frozen=True)
class Domains:
    """Windows of every domain, by its name.

    Attributes:
        train: to learn from.
        validation: of which the sampler knows the perplexities.
        test: of which the tables do.
    """

    train: dict[str, Any]
    validation: dict[str, Any]
    test: dict[str, Any]


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
