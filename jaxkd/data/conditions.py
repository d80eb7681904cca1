"""Examples without data, which only count."""

import zlib
from dataclasses import dataclass

import numpy as np

from jaxkd.arguments import checked


@checked()
@dataclass(frozen=True)
class Conditions:
    """Examples without data, for programs that draw their own, as BOOT does.

    Attributes:
        examples: in one epoch; they only count the steps.
        classes: of which each example gets one at random, as ``condition``; 0 for
            examples of an ``index`` alone.

    Raises:
        ValueError: no examples, or a negative number of classes.
    """

    examples: int
    classes: int = 0

    def __post_init__(self):
        if self.examples < 1 or self.classes < 0:
            raise ValueError(
                f"examples must be at least 1 and classes at least 0, got "
                f"{self.examples} and {self.classes}"
            )

    @property
    def name(self) -> str:
        """For messages and results."""
        return f"conditions of {self.classes} classes"

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.examples

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return ``index``, and random classes; without ``rng`` all classes in turn."""
        batch = {"index": np.asarray(positions, np.int32)}
        if self.classes:
            drawn = (
                batch["index"] % self.classes
                if rng is None
                else rng.integers(self.classes, size=len(positions))
            )
            batch["condition"] = drawn.astype(np.int32)
        return batch

    @property
    def fingerprint(self) -> str:
        """A checksum of the two numbers."""
        return f"{zlib.crc32(repr(self).encode()):08x}"
