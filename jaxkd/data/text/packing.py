"""Documents packed into rows of one length, each blind to the others of its row."""

import bisect
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Integer

from jaxkd.arguments import checked, count, natural
from jaxkd.checks import unknown_name
from jaxkd.data.shown import brief
from jaxkd.data.text.documents import Documents

TooLong = Literal["split", "cut", "drop"]


@checked()
def best_fit(
    sizes: Integer[np.ndarray, "items"], capacity: int
) -> Integer[np.ndarray, "items"]:
    """Return the row of each item, so that few rows of a capacity hold all.

    The longest first, each into the row that it fills best (Ding et al. 2024,
    arXiv:2404.10830, Section 3).

    Args:
        sizes: of the items, 1 to ``capacity``.
        capacity: of every row.
    """
    row = np.zeros(len(sizes), np.int64)
    rows = 0
    # Rows with room by how much of it, and these sizes in order.
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for item in np.argsort(-sizes, kind="stable"):
        size = int(sizes[item])
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            row[item], room = rows, capacity
            rows += 1
        else:
            room = rooms[place]
            row[item] = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        room -= size
        if room:
            if room not in by_room:
                by_room[room] = []
                bisect.insort(rooms, room)
            by_room[room].append(int(row[item]))
    return row


@checked(dropped=natural)
@dataclass(frozen=True)
class Packed:
    """Rows of documents as examples, each token's label being the next of its own one.

    `pack` makes them. A document of n tokens takes n − 1 places: its last one is a
    label only.

    Attributes:
        documents: in the rows.
        length: places of a row.
        starts: first token of each piece, in the rows' order.
        sizes: places of each piece.
        offsets: where each row's pieces begin, and where the last's end.
        dropped: documents of which nothing is in any row.
    """

    documents: Documents
    length: int
    starts: Integer[np.ndarray, "pieces"]
    sizes: Integer[np.ndarray, "pieces"]
    offsets: Integer[np.ndarray, "rows_and_one"]
    dropped: int

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    @property
    def name(self) -> str:
        """For messages and results."""
        return self.documents.name

    @property
    def classes(self) -> int:
        """Labels are below it."""
        return self.documents.vocabulary

    @property
    def wasted(self) -> float:
        """The share of places that hold padding."""
        return 1 - float(self.sizes.sum()) / (len(self) * self.length)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return rows of (rows, length), and ``index``.

        ``input_ids`` and ``label``; ``segment_ids``, 1 and up for the row's documents
        and 0 for padding, and ``position_ids`` from 0 in each; ``mask``, whether the
        label is to be learnt.

        Raises:
            ValueError: a token that is no class. It names the documents and the token.
        """
        shape = (len(positions), self.length)
        batch = {
            name: np.zeros(shape, np.int32)
            for name in ("input_ids", "label", "segment_ids", "position_ids")
        }
        mask = np.zeros(shape, bool)
        tokens, trained = self.documents.tokens, self.documents.trained
        for row, position in enumerate(positions):
            at = 0
            first, last = self.offsets[position : position + 2]
            for segment, piece in enumerate(range(first, last), 1):
                start, size = self.starts[piece], self.sizes[piece]
                here = row, slice(at, at + size)
                batch["input_ids"][here] = tokens[start : start + size]
                batch["label"][here] = tokens[start + 1 : start + size + 1]
                batch["segment_ids"][here] = segment
                batch["position_ids"][here] = np.arange(size)
                learnt = slice(start + 1, start + size + 1)
                mask[here] = True if trained is None else trained[learnt]
                at += size
        highest = max(batch[name].max() for name in ("input_ids", "label"))
        if highest >= self.classes:
            raise ValueError(
                f"documents {self.name!r} have token {highest}, but their vocabulary "
                f"is 0 to {self.classes - 1}: they were tokenised for another model"
            )
        return {**batch, "mask": mask, "index": np.asarray(positions, np.int32)}

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the documents and of their places."""
        total = zlib.crc32(f"{self.documents.fingerprint} {self.length}".encode())
        for array in (self.starts, self.sizes, self.offsets):
            total = zlib.crc32(np.ascontiguousarray(array, np.int64), total)
        return f"{total:08x}"


@checked(length=count)
def pack(
    documents: Documents,
    length: int,
    *,
    too_long: TooLong = "split",
    alone: bool = False,
) -> Packed:
    """Return documents packed into rows, of which as few as can be are padding.

    A document without a second token, or without one to be learnt, is left out. How
    many were, and the share of padding, is in ``dropped`` and ``wasted``.

    Args:
        documents: from `tokenize` or `tokenize_chats`.
        length: places of a row.
        too_long: whether documents that fit no row are ``split`` into pieces, ``cut``
            off at its end, or left out (``drop``).
        alone: whether each has a row of its own, for networks that do not read
            ``segment_ids``.

    Raises:
        ValueError: a length below 1, an unknown ``too_long``, or no document left.
    """
    if too_long not in ("split", "cut", "drop"):
        raise ValueError(unknown_name("too_long", too_long, ("split", "cut", "drop")))
    places = documents.lengths - 1
    if too_long == "drop":
        places = np.where(places > length, 0, places)
    elif too_long == "cut":
        places = np.minimum(places, length)
    pieces = -(-places // length)
    document = np.repeat(np.arange(len(documents)), pieces)
    number = np.arange(len(document)) - (np.cumsum(pieces) - pieces)[document]
    starts = documents.offsets[:-1][document] + number * length
    sizes = np.minimum(places[document] - number * length, length)
    if documents.trained is not None:
        learnt = np.concatenate([[0], np.cumsum(documents.trained)])
        kept = learnt[starts + 1 + sizes] > learnt[starts + 1]
        document, starts, sizes = document[kept], starts[kept], sizes[kept]
    if not len(starts):
        raise ValueError(
            f"no document of {documents.name!r} is left to learn from: each needs two "
            f"tokens, one of them to be learnt, within {length} places"
        )
    row = np.arange(len(sizes)) if alone else best_fit(sizes, length)
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row))])
    dropped = len(documents) - len(np.unique(document))
    return Packed(documents, length, starts[order], sizes[order], offsets, dropped)
