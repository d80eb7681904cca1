"""Images in tar files, as WebDataset writes them: nothing is unpacked.

The headers are read once, and tell where in its file every image is: so examples can be
read in any order, and a run goes on where it stopped.
"""

import glob
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.arguments import checked, count
from jaxkd.data.images import (
    FORMATS,
    Classes,
    Crop,
    Picture,
    number_labels,
    picture_source,
)
from jaxkd.data.sources import RecordSource
from jaxkd.untrusted import blaming, json_from, shown

LARGEST_IMAGE, LARGEST_LABEL = 2**28, 2**20
"""Bytes of an image and of a label in a tar file."""

MOST_SHARDS = 100_000
"""Files that a pattern may stand for."""

LABELS = (".cls", ".json", ".txt")
"""Ends of the members that may say an image's class: the first that is there does."""


@checked(size=count)
def webdataset(
    shards: str | Path | Sequence[str | Path],
    size: int = 224,
    *,
    label: str = "label",
    classes: Classes = None,
    crop: Crop | None = None,
) -> RecordSource:
    """Return the images of tar files whose members are grouped by name.

    ``0001.jpg`` (or ``.png``, ``.webp``) is an image, and one of ``0001.cls``,
    ``0001.json`` and ``0001.txt`` its class: a number or a name, in JSON as a field.
    The format is WebDataset's (Aizman et al. 2020, arXiv:2001.01858).

    Args:
        shards: files, or patterns such as ``"train-{0000..0146}.tar"`` and
            ``"train-*.tar"``; not compressed.
        size: pixels of an image's side.
        label: the field of JSON with the class.
        classes: names in the order that numbers the classes, or how many there are;
            None for the names or numbers there are.
        crop: brings an image to its size; None for ``CropResize(size)``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file is damaged, compressed or holds no image; an image has no
            class, or two members one name.
    """
    patterns = [shards] if isinstance(shards, str | Path) else list(shards)
    paths = [path for pattern in patterns for path in _matching(str(pattern))]
    places, keys, labels = [], [], []
    for i, path in enumerate(paths):
        for key, start, length, found in _examples(path, label):
            places.append((i, start, length))
            keys.append(key)
            labels.append(found)
    name = " ".join(map(str, patterns))
    if not places:
        raise ValueError(
            f"{name} holds no image: members must end in {', '.join(FORMATS)}"
        )
    numbers, known, names = number_labels(labels, classes, name)
    pictures = _Pictures(paths, np.asarray(places, np.int64), keys, numbers)
    return picture_source(name, pictures, known, names, size, crop)


class _Pictures(Sequence):
    """Members of tar files, read when they are asked for."""

    def __init__(
        self,
        paths: list[Path],
        places: np.ndarray,
        keys: list[str],
        labels: np.ndarray,
    ):
        self._paths, self._places = paths, places
        self._keys, self._labels = keys, labels

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, position: Any) -> Picture:
        shard, start, length = self._places[position].tolist()
        path = self._paths[shard]
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        name = f"{shown(self._keys[position])!r} of {path}"
        return Picture(content, int(self._labels[position]), name)


def _examples(path: Path, label: str) -> Iterator[tuple[str, int, int, Any]]:
    """Yield key, offset, length and class of every image of a tar file, in order."""
    with blaming(str(path)), path.open("rb") as file:
        members: dict[str, dict[str, tuple[int, int]]] = {}
        for name, start, length in _members(file):
            folder, _, base = name.rpartition("/")
            key, _, suffix = base.partition(".")
            group = members.setdefault(f"{folder}/{key}" if folder else key, {})
            suffix = "." + suffix.lower()
            if suffix in FORMATS:
                suffix = "image"
            if suffix in group:
                raise ValueError(f"{name!r} is there twice, or another image of it")
            if suffix == "image" or suffix in LABELS:
                group[suffix] = start, length
        for key, group in members.items():
            if "image" not in group:
                continue
            start, length = group.pop("image")
            if length > LARGEST_IMAGE:
                raise ValueError(f"the image {key!r} has {length:,} bytes")
            yield key, start, length, _class(file, key, group, label)


def _class(file: Any, key: str, group: dict[str, tuple[int, int]], label: str) -> Any:
    for suffix in LABELS:
        if suffix not in group:
            continue
        start, length = group[suffix]
        if length > LARGEST_LABEL:
            raise ValueError(f"{key + suffix!r} has {length:,} bytes")
        file.seek(start)
        content = file.read(length)
        if suffix != ".json":
            return content.decode().strip()
        found = json_from(content, repr(key + suffix), LARGEST_LABEL)
        if not isinstance(found, dict) or label not in found:
            raise ValueError(f"{key + suffix!r} has no field {label!r}")
        return found[label]
    raise ValueError(f"the image {key!r} has no {', '.join(LABELS)} with its class")


def _members(file: Any) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and length of every file in a tar file."""
    archive: Any
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size
            archive.members = []  # It keeps all otherwise.
        # A damaged header looks like the end; but the end is zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise ValueError(f"the header at byte {archive.offset:,} is damaged")


def _matching(pattern: str) -> list[Path]:
    """Return the files that a pattern stands for, in order."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces:
        first, last = braces.groups()
        if int(last) - int(first) >= MOST_SHARDS:
            raise ValueError(f"{pattern} stands for more than {MOST_SHARDS:,} files")
        width = len(first) if len(first) == len(last) else 0
        return [
            path
            for i in range(int(first), int(last) + 1)
            for path in _matching(
                f"{pattern[: braces.start()]}{i:0{width}d}{pattern[braces.end() :]}"
            )
        ]
    if Path(pattern).is_file():
        return [Path(pattern)]
    found = sorted(map(Path, glob.glob(pattern)))
    if not found:
        raise FileNotFoundError(f"{pattern} is no file, and stands for none")
    return found
