"""The random blocks of BigBird's attention, as transformers draws them."""

import functools
import math

import numpy as np

from jaxkd.arguments import checked, count

PLANNED, NEAR = (1024, 3072, 4096), 1024
"""Lengths at which BigBird draws random blocks another way, and the tokens among which
it then looks."""


@functools.lru_cache(maxsize=64)
@checked(block=count)
def drawn_blocks(
    length: int,
    block: int,
    number: int,
    shape: tuple[int, int],
    positions: int,
    train: bool,
) -> np.ndarray | None:
    """Return the random blocks that transformers' BigBird sees.

    It draws them in training, with a layer's number as NumPy's seed, and in evaluation
    has the first block in their place, which then counts ``number + 1`` times. (The
    authors' code keeps the random ones.)

    Args:
        length: of the sequences.
        block: tokens of one.
        number: of random blocks that one sees.
        shape: layers and heads.
        positions: of the model's table.
        train: whether to draw.

    Returns:
        (layers, heads, blocks - 2, number), or None up to ``(5 + 2·number)`` blocks,
        where attention is full.

    Raises:
        ValueError: there are too few blocks to draw from.
    """
    if length <= (5 + 2 * number) * block:
        return None
    blocks = math.ceil(length / block)
    layers, heads = shape
    found = np.zeros((layers, heads, blocks - 2, number), np.int32)
    if not train:
        return found
    planned = blocks * block in PLANNED
    for layer in range(layers):
        draw = np.random.RandomState(layer)
        if planned:
            for head in range(heads):
                rows = _planned(positions // block, block, number, draw)
                found[layer, head] = rows[: blocks - 2]
        else:
            for row in range(1, blocks - 1):
                for head in range(heads):
                    found[layer, head, row - 1] = _drawn(row, number, draw)
    return found


def _drawn(row: int, number: int, draw: np.random.RandomState) -> list[int]:
    """Return blocks drawn for one among the first, which it does not see anyway."""
    last = 2 * number + 4
    near = {row - 1, row, row + 1, 0, last}
    # The second block and the one before the last do not see each other.
    near |= {1: {last - 1}, last - 1: {1}}.get(row, set())
    order = draw.permutation(np.arange(last + 1, dtype=np.int32))
    return [i for i in order.tolist() if i not in near][:number]


def _planned(
    blocks: int, block: int, number: int, draw: np.random.RandomState
) -> np.ndarray:
    """Return blocks drawn for each between the ends of the longest text."""
    middle = np.arange(1, blocks - 1, dtype=np.int32)
    last = NEAR // block - 1 if 2 * block < NEAR else blocks - 1
    found = []
    for row in range(1, blocks - 1):
        start = min(row - 2, last)
        if row < 3:
            among = middle[row + 1 : last]
        elif row >= blocks - 3:
            among = middle[:last]
        elif start == last or row + 1 == last:
            among = middle[:start]
        else:
            among = np.concatenate([middle[:start], middle[row + 1 : last]])
        if len(among) < number:
            raise ValueError(
                f"random_blocks {number} are more than the {len(among)} to draw from "
                f"with blocks of {block} tokens: take smaller blocks, or fewer"
            )
        found.append(draw.permutation(among)[:number])
    return np.stack(found)
