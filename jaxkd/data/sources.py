"""Where examples come from: in memory, or records decoded as they are read."""

import numbers
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from jaxkd.arguments import checked, own_check
from jaxkd.checks import check_batch
from jaxkd.data.shown import brief

Example = Mapping[str, Any]


@runtime_checkable
class Examples(Protocol):
    """What batches are made from: `Source`, `RecordSource`, or your own."""

    @property
    def name(self) -> str:
        """For messages and results."""
        ...

    @property
    def classes(self) -> int:
        """Labels are below it."""
        ...

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the examples at these positions, and the positions as ``index``.

        Args:
            positions: below the number of examples.
            rng: for random crops and the like; None asks for the form to evaluate on.
        """
        ...

    @property
    def fingerprint(self) -> Any:
        """A checksum that changes with the data, as text; a cached property will do."""
        ...


@checked()
def example_labels(source: Examples) -> np.ndarray:
    """Return the labels of all of a source, read in parts."""
    parts = np.array_split(np.arange(len(source)), -(-len(source) // 1000))
    return np.concatenate([source.take(rows)["label"] for rows in parts])


@checked(given=own_check)
def counted(name: str, given: int | float, source: Examples) -> int:
    """Return how many examples are meant by a number, or by a share such as 0.2.

    Args:
        name: of the argument.
        given: an integer, or a float between 0 and 1.
        source: has the examples.

    Raises:
        ValueError: another float.
    """
    if isinstance(given, numbers.Integral):
        return int(given)
    if not 0 < given < 1:
        raise ValueError(
            f"{name} must be a number of examples of {source.name} ({len(source)}), or "
            f"a share of them such as 0.2, got {given}"
        )
    return round(given * len(source))


def _checksum(arrays: Mapping[str, Any], total: int) -> int:
    """Return a checksum of names and arrays, going on from another."""
    for name, array in sorted(arrays.items()):
        total = zlib.crc32(
            np.ascontiguousarray(array), zlib.crc32(name.encode(), total)
        )
    return total


def _check_images(arrays: Mapping[str, Any]) -> None:
    dtype = getattr(arrays.get("image"), "dtype", np.uint8)
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise ValueError(
            f"image is {dtype}: give uint8 of 0 … 255, which Normalize scales, or "
            "floats that are scaled already"
        )


@checked()
@dataclass(frozen=True)
class Source:
    """Examples in memory.

    Attributes:
        name: for messages and results.
        arrays: ``image`` (examples, height, width, channels) of floats, or of uint8 to
            be normalised by a transform; ``label`` (examples,), …
        classes: labels are below it.

    Raises:
        ValueError: no examples, arrays of different lengths, masked ones, values that
            are not finite, labels out of range, images neither uint8 nor floats, or an
            ``index`` that is not the examples' own.
    """

    name: str
    arrays: dict[str, np.ndarray]
    classes: int

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    def __post_init__(self):
        arrays = {
            name: np.asarray(value) if isinstance(value, list | tuple) else value
            for name, value in self.arrays.items()
        }
        object.__setattr__(self, "arrays", arrays)
        try:
            for name, array in arrays.items():
                if not np.ndim(array):
                    raise ValueError(f"{name} is {array!r:.80}, not one an example")
                if np.ma.isMaskedArray(array):
                    raise ValueError(
                        f"{name} is a masked array, whose mask would be lost: fill it"
                    )
            places = np.arange(len(self))
            if not np.array_equal(arrays.get("index", places), places):
                raise ValueError(
                    "index is the name of the examples' positions: give yours another"
                )
            check_batch(self.arrays, self.classes)
            _check_images(self.arrays)
        except ValueError as error:
            raise ValueError(f"data set {self.name!r}: {error}") from None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self.arrays.values())))

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the examples at these positions, and the positions as ``index``."""
        batch = {name: array[positions] for name, array in self.arrays.items()}
        return {**batch, "index": np.asarray(positions, np.int32)}

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of all arrays."""
        return f"{_checksum(self.arrays, 0):08x}"

    def subset(self, examples: int | float, seed: int = 0) -> "Source":
        """Return a random subset with the classes as balanced as they can be.

        Args:
            examples: how many, at most all, or which share, such as 0.2.
            seed: of the choice.

        Raises:
            ValueError: more examples than there are, or none; labels that are no class
                indices.
        """
        examples = counted("examples", examples, self)
        if not 0 < examples <= len(self):
            raise ValueError(
                f"examples must be 1 to {len(self)} (the size of {self.name}), got "
                f"{examples}"
            )
        label = self.arrays.get("label")
        if label is None or np.ndim(label) != 1:
            raise ValueError(
                f"the subset of {self.name!r} is balanced by label, one class index an "
                f"example, but label is {brief(label)}: take data.Subset of positions"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        label = label[order]
        # Each example's rank within its class, first ranks first.
        rank = np.zeros(len(order), int)
        for value in np.unique(label):
            rank[label == value] = np.arange(np.sum(label == value))
        chosen = np.sort(order[np.argsort(rank, kind="stable")[:examples]])
        arrays = {name: array[chosen] for name, array in self.arrays.items()}
        return Source(f"{self.name}[{examples}]", arrays, self.classes)


@checked()
@dataclass(frozen=True)
class RecordSource:
    """Examples that are read and decoded when they are asked for.

    Attributes:
        name: for messages and results.
        records: any random-access sequence, such as a tensorflow-datasets data source.
        decode: ``(record, rng) -> example``, a dict of arrays of the same shapes for
            every record; without ``rng`` the form to evaluate on.
        classes: labels are below it.
        names: of the classes; empty if they are not known.
    """

    name: str
    records: Sequence[Any]
    decode: Callable[[Any, np.random.Generator | None], Example]
    classes: int
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.records)

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the examples at these positions, and the positions as ``index``.

        Raises:
            ValueError: a record cannot be read or decoded, its arrays differ from the
                others', or its image is neither uint8 nor floats. It names the data set
                and the record.
        """
        examples = [self._example(int(position), rng) for position in positions]
        shapes = [{k: np.shape(v) for k, v in example.items()} for example in examples]
        for position, shape in zip(positions, shapes, strict=True):
            if shape != shapes[0]:
                raise ValueError(
                    f"data set {self.name!r}: record {position} has shapes {shape}, "
                    f"but record {positions[0]} has {shapes[0]}: give decode a step "
                    "that brings all to one shape, such as CropResize"
                )
        batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
        return {**batch, "index": np.asarray(positions, np.int32)}

    def _example(self, position: int, rng: np.random.Generator | None) -> Example:
        try:
            example = self.decode(self.records[position], rng)
        except Exception as error:  # every reader and decoder has its own
            raise ValueError(
                f"data set {self.name!r}: record {position} cannot be read "
                f"({type(error).__name__}: {error}): it may be damaged; prepare the "
                "data set again"
            ) from error
        try:
            _check_images(example)
            if example.get("index", position) != position:
                raise ValueError(
                    "index is the name of the examples' positions: call it otherwise"
                )
        except ValueError as error:
            raise ValueError(
                f"data set {self.name!r}: record {position}: {error}"
            ) from None
        return example

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the number of records and of eight of them."""
        total = zlib.crc32(str(len(self)).encode())
        for position in np.linspace(0, len(self) - 1, 8, dtype=int):
            total = _checksum(self._example(int(position), None), total)
        return f"{total:08x}"


class _Chosen(Sequence):
    """Some records of a sequence, still read only when they are asked for."""

    def __init__(self, records: Sequence[Any], positions: np.ndarray):
        self._records, self._positions = records, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: Any) -> Any:
        return self._records[int(self._positions[position])]


@checked()
@dataclass(frozen=True)
class Subset:
    """Some of the examples of any source, numbered anew.

    Attributes:
        source: has the examples.
        positions: theirs in the source.

    Raises:
        ValueError: no position, or one that is none of the source's.
    """

    source: Examples
    positions: Integer[np.ndarray, "examples"]

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    def __post_init__(self):
        if isinstance(self.positions, list | tuple):
            object.__setattr__(self, "positions", np.asarray(self.positions))
        size, chosen = len(self.source), self.positions
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= size:
            raise ValueError(
                f"positions must be some of 0 to {size - 1}, the examples of "
                f"{self.source.name}"
            )

    @property
    def name(self) -> str:
        """The source's, and how many of its examples."""
        return f"{self.source.name}[{len(self)}]"

    @property
    def classes(self) -> int:
        """Labels are below it."""
        return self.source.classes

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.positions)

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the source's examples, with their numbers here as ``index``."""
        found = self.source.take(self.positions[positions], rng)
        return {**found, "index": np.asarray(positions, np.int32)}

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the source's and the positions."""
        chosen = {"positions": self.positions}
        return f"{_checksum(chosen, zlib.crc32(self.source.fingerprint.encode())):08x}"


@checked(held_out=own_check)
def split[S: (Source, RecordSource)](
    source: S, held_out: int | float, seed: int = 0
) -> tuple[S, S]:
    """Return a source without some random examples, and one of those examples.

    Args:
        source: in memory or of records, which are not read.
        held_out: how many examples the second part gets, or which share, such as 0.2.
        seed: of the choice.

    Raises:
        ValueError: a part would be empty.
    """
    held_out = counted("held_out", held_out, source)
    if not 0 < held_out < len(source):
        raise ValueError(
            f"held_out must be 1 to {len(source) - 1} (of {len(source)} examples of "
            f"{source.name}), got {held_out}"
        )
    order = np.random.default_rng(seed).permutation(len(source))

    def part(positions: np.ndarray) -> Any:
        positions = np.sort(positions)
        name = f"{source.name}[{len(positions)}]"
        if isinstance(source, Source):
            arrays = {key: array[positions] for key, array in source.arrays.items()}
            return Source(name, arrays, source.classes)
        return replace(source, name=name, records=_Chosen(source.records, positions))

    return part(order[held_out:]), part(order[:held_out])


@checked()
@dataclass(frozen=True)
class Dataset:
    """A training and a test source of the same classes.

    Attributes:
        train: to learn from.
        test: to evaluate on.
        mean: of each channel of uint8 images after division by 255, for `Normalize`;
            empty where the images are floats already.
        std: standard deviations, likewise.
    """

    train: Any
    test: Any
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
