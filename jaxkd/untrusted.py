"""Readers of JSON and NumPy arrays that someone else wrote, by file or over a network.

Sizes are checked before anything is allocated for them, nothing is unpickled, and
whatever is wrong is a `ValueError` that names the source and what was wrong.
"""

import gzip
import io
import json
import lzma
import math
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

DEEPEST = 64
"""How far JSON may be nested: no format in use comes near, and printing it is safe."""

LONGEST_HEADER = 16_384
"""Bytes before the numbers of an ``.npy`` file; NumPy itself reads 10,000."""

LARGEST_JSON = 2**26
"""Bytes of a JSON file; the index of a model of a trillion parameters has a quarter."""

EXPANSION, EXPANDED = 64, 2**28
"""A compressed file may become so many times longer, or have so many bytes if that is
more. Data of use become ten times longer at most; a file made to fill the memory, a
thousand times."""


def shown(text: str, longest: int = 300) -> str:
    """Return someone else's words for a message: cut, and without control characters.

    Args:
        text: the words.
        longest: characters to keep.
    """
    return "".join(c if c.isprintable() else "?" for c in text[:longest])


def json_file(path: Path, limit: int = LARGEST_JSON) -> Any:
    """Return what a file of JSON says.

    Args:
        path: of the file.
        limit: bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        ValueError: as `json_from`. It names the file.
    """
    return json_from(read_bytes(path, limit), str(path), limit)


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a file that is not too large.

    Args:
        path: of the file.
        limit: bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is larger. It names the file.
    """
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{path} has {size:,} bytes, but may have {limit:,}")
    return path.read_bytes()


def decompressed(path: Path) -> bytes:
    """Return the content of a file, decompressed if its name ends in .xz or .gz.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or becomes too long (`EXPANSION`). It names the file.
    """
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix)
    if opened is None:
        return path.read_bytes()
    limit = expanded_limit(path)
    with blaming(str(path)), opened(path) as file:
        content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"decompressed it has more than {limit:,} bytes")
        return content


def expanded_limit(path: Path) -> int:
    """Return the bytes that a compressed file may have when it is decompressed."""
    return max(EXPANSION * path.stat().st_size, EXPANDED)


def arrays_file(
    path: Path, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file.

    Args:
        path: of the file.
        names: of those that are read; None for all.

    Raises:
        FileNotFoundError: there is none.
        ValueError: as `arrays_from`; they may take as much as `EXPANSION` says. It
            names the file.
    """
    with path.open("rb") as file:
        found = arrays_from(file, str(path), expanded_limit(path), names)
    if missing := set(names or ()) - set(found):
        raise ValueError(f"{path} lacks the arrays {', '.join(sorted(missing))}")
    return found


def mapped_array(path: Path) -> np.ndarray:
    """Return the array of an ``.npy`` file, which stays on disk until it is used.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: as `array_from`. It names the file.
    """
    size = path.stat().st_size
    with blaming(str(path)):
        with path.open("rb") as file:
            _check_header(file, size, size)
        return np.load(path, mmap_mode="r", allow_pickle=False)


def json_from(content: bytes | str, name: str, limit: int) -> Any:
    """Return what a JSON text says.

    Infinity and NaN are read as `json.loads` reads them: check numbers for them.

    Args:
        content: the text; bytes are UTF-8.
        name: of the source, for messages.
        limit: bytes (of a string: characters) that it may have.

    Raises:
        ValueError: it is longer, no JSON, nested more than `DEEPEST` times, or has a
            key twice in one object.
    """
    if len(content) > limit:
        raise ValueError(f"{name} has {len(content)} bytes, but may have {limit}")
    try:
        text = content if isinstance(content, str) else content.decode()
        found = json.loads(text, object_pairs_hook=_unique)
        _check_depth(found)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON that can be read: {error}") from None
    return found


def array_from(content: bytes, name: str, limit: int) -> np.ndarray:
    """Return the array of an ``.npy`` file.

    Args:
        content: all of the file.
        name: of the source, for messages.
        limit: bytes that the array may take.

    Raises:
        ValueError: it would take more, is cut off, damaged, or not of numbers or
            strings.
    """
    with blaming(name):
        file = io.BytesIO(content)
        _check_header(file, len(content), limit)
        file.seek(0)
        return npy.read_array(file, allow_pickle=False)


def arrays_from(
    content: bytes | io.BufferedIOBase,
    name: str,
    limit: int,
    names: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file, compressed or not.

    Args:
        content: all of the file, or the file itself, open for bytes.
        name: of the source, for messages.
        limit: bytes that all arrays together may take.
        names: of those that are read; None for all.

    Raises:
        ValueError: as `array_from`; or no archive of arrays with different names.
    """
    arrays: dict[str, np.ndarray] = {}
    left = limit
    with blaming(name):
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                with blaming(repr(info.filename)):
                    key = info.filename.removesuffix(".npy")
                    if key == info.filename or key in arrays:
                        raise ValueError("it is no .npy file, or there twice")
                    if names is not None and key not in names:
                        continue
                    # NumPy writes these; others take memory that no header tells of.
                    if info.compress_type not in (
                        zipfile.ZIP_STORED,
                        zipfile.ZIP_DEFLATED,
                    ):
                        raise ValueError("it is not compressed as NumPy does it")
                    with archive.open(info) as member:
                        _check_header(member, info.file_size, left)
                    with archive.open(info) as member:
                        arrays[key] = npy.read_array(member, allow_pickle=False)
                    left -= arrays[key].nbytes
    return arrays


def _check_header(file: Any, size: int, limit: int) -> None:
    """Refuse an ``.npy`` file by its length and its header alone."""
    if size > limit + LONGEST_HEADER:
        raise ValueError(f"it has {size} bytes, but may have {limit}")
    version = npy.read_magic(file)
    readers = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"it has version {version} of the format, not 1.0 or 2.0")
    shape, _, dtype = readers[version](file)
    if dtype.kind not in "biufcSU" or not dtype.itemsize:
        raise ValueError(f"it holds {dtype}, not numbers or strings")
    # An empty array must have a shape that an array can have, too.
    if min(shape, default=0) < 0:
        raise ValueError(f"it has the shape {shape}")
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > limit:
        raise ValueError(
            f"its header asks for {shape} {dtype}, but it may have {limit} bytes"
        )
    expected = math.prod(shape) * dtype.itemsize
    if size - file.tell() != expected:
        raise ValueError(
            f"it has {size - file.tell()} bytes for {shape} {dtype}, not {expected}: "
            "it is cut off or damaged"
        )


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn what malformed bytes cause, which is not known, into a ValueError.

    Args:
        name: of the source, for the message.
    """
    try:
        yield
    except BaseException as error:
        # A panic of a library in Rust is no Exception; Ctrl-C is none either.
        panic = type(error).__name__ == "PanicException"
        if not panic and not isinstance(error, Exception):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        # The message may repeat what stands in the file.
        raise ValueError(f"{name} cannot be read: {kind}{shown(str(error))}") from None


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(DEEPEST):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if any(isinstance(item, dict | list) for item in level):
        raise ValueError(f"it is nested more than {DEEPEST} times")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice in one object")
    return found
