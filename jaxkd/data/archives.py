"""Released archives of images as they are: CIFAR's Python and binary, MNIST's idx.

Nothing is unpickled: of CIFAR's Python version an interpreter follows the few
operations that its files have, which build dicts, lists and names alone.
"""

import math
import pickletools
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.arguments import checked, count
from jaxkd.untrusted import decompressed, read_bytes

LARGEST = 2**28
"""Bytes of a file of an archive; CIFAR's largest has 0.6 of it."""

IMAGE = 32 * 32 * 3
"""Values of an image of CIFAR, all rows of red before green before blue."""

Split = tuple[np.ndarray, np.ndarray]
"""Images (examples, height, width, channels), uint8, and their labels."""


@checked()
def idx_file(path: Path) -> np.ndarray:
    """Return the array of a file in MNIST's format, idx, compressed or not.

    Args:
        path: such as ``train-images-idx3-ubyte.gz``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: another format, or another length than its header says.
    """
    content = decompressed(path)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no idx file of bytes: it begins {content[:4]!r}")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if len(shape) < content[3] or len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} is damaged: its header says {shape}, but {len(content):,} bytes "
            "are there. Fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


@checked(classes=count)
def cifar_files(path: Path, classes: int) -> tuple[Split, Split]:
    """Return CIFAR's training and test images from a released archive or its folder.

    Krizhevsky 2009. Labels of CIFAR-100 are the fine ones.

    Args:
        path: ``cifar-10-python.tar.gz``, ``cifar-100-binary.tar.gz``, …, or what it
            holds, unpacked.
        classes: 10 or 100.

    Raises:
        FileNotFoundError: there is no such file in it.
        ValueError: it is damaged, or no such archive.
    """
    python = {
        10: ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]),
        100: (["train"], ["test"]),
    }[classes]
    names = [name for split in python for name in split]
    contents = dict(_members(path, {*names, *(f"{name}.bin" for name in names)}))
    binary = f"{names[0]}.bin" in contents
    read: Callable[[bytes, int], Split] = _binary if binary else _pickled
    suffix = ".bin" if binary else ""
    splits = []
    for split in python:
        parts = []
        for name in split:
            if name + suffix not in contents:
                raise FileNotFoundError(f"{path} holds no {name}{suffix}")
            try:
                parts.append(read(contents[name + suffix], classes))
            except ValueError as error:
                raise ValueError(
                    f"{name}{suffix} of {path} is damaged or not CIFAR-{classes}'s "
                    f"({error}): fetch it again"
                ) from None
        splits.append(tuple(np.concatenate(x) for x in zip(*parts, strict=True)))
    return splits[0], splits[1]


def _members(path: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of some names in a folder or a tar file, wherever they lie."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.name in names:
                yield file.name, read_bytes(file, LARGEST)
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in names or not member.isfile():
                    continue
                if member.size > LARGEST:
                    raise ValueError(f"{name} has {member.size:,} bytes")
                file = archive.extractfile(member)
                assert file is not None  # It is for what is no file.
                yield name, file.read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} is damaged or no archive ({error}): fetch it again"
        ) from None


def _images(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _binary(content: bytes, classes: int) -> Split:
    labels = 1 if classes == 10 else 2  # The coarse one comes first.
    if not content or len(content) % (labels + IMAGE):
        raise ValueError(f"{len(content):,} bytes are no whole number of images")
    rows = np.frombuffer(content, np.uint8).reshape(-1, labels + IMAGE)
    return _images(rows[:, labels:]), _labels(rows[:, labels - 1], classes)


def _pickled(content: bytes, classes: int) -> Split:
    found = _interpreted(content)
    name = "labels" if classes == 10 else "fine_labels"
    if not isinstance(found, dict) or not {"data", name} <= found.keys():
        raise ValueError(f"it holds no dict with data and {name}")
    match found["data"]:
        case _Made(
            function=_, state=(_, (int(n), 3072), _Made(arguments=("u1", *_)), *rest)
        ) if len(rest) == 2 and rest[0] in (False, 0):
            values = _as_bytes(rest[1])
        case _:
            raise ValueError("data is no array of 3,072 bytes a row")
    if len(values) != n * IMAGE:
        raise ValueError(f"data has {len(values):,} bytes, not {n} images'")
    labels = found[name]
    if not isinstance(labels, list) or len(labels) != n:
        raise ValueError(f"{name} is no list of {n}")
    if any(type(label) is not int for label in labels):
        raise ValueError(f"{name} holds what is no integer")
    return _images(np.frombuffer(values, np.uint8)), _labels(np.array(labels), classes)


def _labels(labels: np.ndarray, classes: int) -> np.ndarray:
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"it has label {labels.max()} of {classes} classes")
    return labels.astype(np.int32)


@dataclass
class _Made:
    """What a pickle would have made by calling a function, which was not called."""

    function: Any
    arguments: Any
    state: Any = None


def _as_bytes(value: Any) -> bytes:
    """Return a text of Python 2, or bytes as Python 3 writes them for it."""
    match value:
        case _Made(function="_codecs encode", arguments=(str(text), "latin1")):
            value = text
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, bytes):
        return value
    raise ValueError(f"a {type(value).__name__} stands where a text should")


MARK = object()


def _interpreted(content: bytes) -> Any:
    """Return the dicts, lists, tuples and plain values that a pickle describes.

    Raises:
        ValueError: an operation that CIFAR's files have not.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def marked() -> list[Any]:
        place = max(i for i, x in enumerate(stack) if x is MARK)
        items = stack[place + 1 :]
        del stack[place:]
        return items

    try:
        for operation, value, _ in pickletools.genops(content):
            match operation.name:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    stack.append(MARK)
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append(
                        {"NEWTRUE": True, "NEWFALSE": False}.get(operation.name)
                    )
                case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                    stack.append({"D": {}, "L": [], "T": ()}[operation.name[6]])
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "TUPLE":
                    stack.append(tuple(marked()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    size = int(operation.name[-1])
                    stack[-size:] = [tuple(stack[-size:])]
                case "APPEND":
                    stack[-2].append(stack.pop())
                case "APPENDS":
                    items = marked()
                    stack[-1].extend(items)
                case "SETITEM" | "SETITEMS":
                    items = marked() if operation.name[-1] == "S" else stack[-2:]
                    if operation.name == "SETITEM":
                        del stack[-2:]
                    names = (_as_bytes(x).decode() for x in items[::2])
                    stack[-1].update(zip(names, items[1::2], strict=True))
                case "STACK_GLOBAL":
                    stack[-2:] = [f"{stack[-2]} {stack[-1]}"]
                case "REDUCE":
                    stack[-2:] = [_Made(stack[-2], stack[-1])]
                case "BUILD":
                    state = stack.pop()
                    stack[-1].state = state
                case "STOP":
                    (result,) = stack
                    return result
                case _ if isinstance(value, int | str | bytes):
                    stack.append(value)  # Numbers, texts, bytes, and GLOBAL's name.
                case _:
                    raise ValueError(f"{operation.name} is none of its operations")
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its operations do not fit ({error!r:.80})") from None
    raise ValueError("it ends in the middle")
