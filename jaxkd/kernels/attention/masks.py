"""Which keys a query sees by its place, without an array of length by length."""

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Band:
    """Keys near the query, and tokens that see and are seen everywhere.

    Attributes:
        left: keys before the query that it sees; None for all.
        right: keys after it; None for all.
        causal: no query sees a later key, whatever else holds.
        everywhere: positions of the tokens that see and are seen everywhere.
    """

    left: int | None = None
    right: int | None = None
    causal: bool = False
    everywhere: tuple[int, ...] = ()

    def visible(self, rows: Any, columns: Any) -> Any:
        """Return whether queries see keys: their positions, arrays that broadcast."""
        seen = True
        if self.left is not None:
            seen &= columns >= rows - self.left
        if self.right is not None:
            seen &= columns <= rows + self.right
        for first, last in self._runs:
            seen |= (rows >= first) & (rows <= last)
            seen |= (columns >= first) & (columns <= last)
        if self.causal:
            seen &= columns <= rows
        return seen

    def sees_any(self, rows: Any, columns: Any) -> Any:
        """Return whether queries see a key, (batch, 1, rows), from their segments."""
        i, j = (jnp.arange(x.shape[1]) for x in (rows, columns))
        seen = self.visible(i[:, None], j[None]) & (
            rows[:, :, None] == columns[:, None]
        )
        return seen.any(-1)[:, None]

    def pairs(
        self, rows: int, columns: int, block_rows: int, block_columns: int
    ) -> np.ndarray:
        """Return the blocks that hold a visible pair, (pairs, 2), by rows.

        Args:
            rows: queries.
            columns: keys.
            block_rows: queries of a block; the last may have fewer.
            block_columns: keys of a block; likewise.
        """
        top = np.arange(0, rows, block_rows)[:, None]
        left = np.arange(0, columns, block_columns)[None]
        bottom = np.minimum(top + block_rows, rows) - 1
        right = np.minimum(left + block_columns, columns) - 1
        touched = np.ones((top.size, left.size), bool)
        if self.left is not None:
            touched &= right >= top - self.left
        if self.right is not None:
            touched &= left <= bottom + self.right
        for first, last in self._runs:
            touched |= (bottom >= first) & (top <= last)
            touched |= (right >= first) & (left <= last)
        if self.causal:
            touched &= left <= bottom
        return np.argwhere(touched)

    def block(self, least: int, most: int) -> int:
        """Return the size of blocks that suits the band: its wider side's."""
        right = 0 if self.causal else self.right
        if self.left is None or right is None:
            return most
        return min(most, max(least, self.left, right))

    @functools.cached_property
    def _runs(self) -> list[tuple[int, int]]:
        """Return first and last of each run of neighbours among `everywhere`."""
        runs: list[tuple[int, int]] = []
        for token in sorted(self.everywhere):
            if runs and token <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], token)
            else:
                runs.append((token, token))
        return runs


@dataclass(frozen=True)
class Tiles:
    """Whole blocks of keys that whole blocks of queries see, for each head.

    Attributes:
        seen: the table's bytes, so that it can be compared and hashed.
        shape: (heads, blocks of queries, blocks of keys).
        rows: queries of a block.
        columns: keys of a block.
    """

    seen: bytes
    shape: tuple[int, int, int]
    rows: int
    columns: int
    causal = False

    @property
    def table(self) -> np.ndarray:
        """Return (heads, blocks of queries, blocks of keys) booleans."""
        return np.frombuffer(self.seen, bool).reshape(self.shape)

    def visible(self, rows: Any, columns: Any) -> Any:
        """Return (heads, 1, rows, columns) for positions (rows, 1) and (1, columns)."""
        # Past the end there is only what fills a block, which is masked elsewhere.
        i = (rows // self.rows).clip(max=self.shape[1] - 1)
        j = (columns // self.columns).clip(max=self.shape[2] - 1)
        table = self.table if isinstance(rows, np.ndarray) else jnp.asarray(self.table)
        return table[:, i, j][:, None]

    def sees_any(self, rows: Any, columns: Any) -> Any:
        """Return whether queries see a key, (batch, heads, rows), from segments."""
        same = rows[:, :, None] == columns[:, None]
        same = same.reshape(*rows.shape, -1, self.columns).any(-1)
        return (same[:, None] & self.table.repeat(self.rows, axis=1)).any(-1)

    def head(self, head: int) -> "Tiles":
        """Return one head's."""
        return Tiles(
            self.table[head].tobytes(), (1, *self.shape[1:]), self.rows, self.columns
        )

    def block(self, least: int, most: int) -> int:
        """Return the size of blocks that suits the pattern: its own."""
        return min(most, max(least, self.rows, self.columns))

    def pairs(self) -> np.ndarray:
        """Return each head's blocks, (heads, pairs, 2); filled up past the end."""
        found = [np.argwhere(head) for head in self.table]
        nothing = (0, self.shape[2])
        most = max(map(len, found))
        filled = [
            [*map(tuple, pairs)] + [nothing] * (most - len(pairs)) for pairs in found
        ]
        return np.asarray(filled, np.int32).reshape(len(filled), most, 2)
