"""One text in the student's tokens, and in those of each of several teachers."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxkd.arguments import checked
from jaxkd.data.shown import brief
from jaxkd.data.text.two_tokenizers import TwoTokenizers


@checked()
@dataclass(frozen=True)
class SeveralTokenizers:
    """Texts as a student and several teachers read them; `several_tokenizers` makes it.

    Attributes:
        pairs: the student with each teacher.
    """

    pairs: Sequence[TwoTokenizers]

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    @property
    def name(self) -> str:
        """For messages and results."""
        return (
            f"{self.pairs[0].student.name} in {len(self.pairs) + 1} tokenizers' tokens"
        )

    @property
    def classes(self) -> int:
        """Labels, which are the student's, are below it."""
        return self.pairs[0].classes

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.pairs[0])

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return rows as `TwoTokenizers.take`, with ``teacher_0_`` for ``teacher_``."""
        batch: dict[str, np.ndarray] = {}
        for i, pair in enumerate(self.pairs):
            batch |= {
                name.replace("teacher_", f"teacher_{i}_", 1): rows
                for name, rows in pair.take(positions, rng).items()
            }
        return batch

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of all pairs."""
        text = " ".join(pair.fingerprint for pair in self.pairs)
        return f"{zlib.crc32(text.encode()):08x}"


@checked()
def several_tokenizers(pairs: Sequence[TwoTokenizers]) -> SeveralTokenizers:
    """Return rows for one student and several teachers.

    Args:
        pairs: from `two_tokenizers`, all with the same student's documents.

    Raises:
        ValueError: no pairs, or of different students' texts.
    """
    kinds = {(p.student.fingerprint, p.length, len(p)) for p in pairs}
    if len(kinds) != 1:
        raise ValueError(
            f"pairs has {len(pairs)} pairs with {len(kinds)} different students' rows: "
            "make each by two_tokenizers with the same student, documents and length"
        )
    return SeveralTokenizers(pairs)
