"""Spaces of architectures that are a choice at each of some positions."""

import itertools
from dataclasses import dataclass

import numpy as np

from jaxkd.arguments import checked


@checked()
@dataclass(frozen=True)
class ChoiceSpace:
    """Tuples that hold one of the same choices at every position.

    DisWOT's S1, the blocks of each stage of a CIFAR ResNet, is
    ``ChoiceSpace((1, 3, 5, 7), 3)``; NAS-Bench-201, an operation on each edge of a
    cell, ``ChoiceSpace((0, 1, 2, 3, 4), 6)``.

    Attributes:
        choices: the values.
        length: how many positions.

    Raises:
        ValueError: fewer than two choices or no positions.
    """

    choices: tuple[int, ...]
    length: int

    def __post_init__(self):
        if len(set(self.choices)) < 2 or self.length < 1:
            raise ValueError(
                "a space needs at least 2 choices and 1 position, got "
                f"{self.choices} and {self.length}"
            )

    def architectures(self) -> list[tuple[int, ...]]:
        """Return all of them, sorted as the choices are."""
        return list(itertools.product(self.choices, repeat=self.length))

    def position(self, architecture: tuple[int, ...]) -> int:
        """Return where one stands among `architectures`."""
        total = 0
        for choice in architecture:
            total = total * len(self.choices) + self.choices.index(choice)
        return total

    def random(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Return one, all equally likely."""
        return tuple(rng.choice(self.choices, size=self.length).tolist())

    def mutate(
        self, rng: np.random.Generator, architecture: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Return it with another choice at one position."""
        position = int(rng.integers(self.length))
        others = [c for c in self.choices if c != architecture[position]]
        changed = int(rng.choice(others))
        return (*architecture[:position], changed, *architecture[position + 1 :])
