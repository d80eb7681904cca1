"""Files that are complete or absent, and names in them that lead nowhere else."""

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any


def inside(folder: Path, name: Any, source: Path) -> Path:
    """Return the path of a file of a folder, by the name that another file has of it.

    Links in the folder are followed: whoever made the folder made them (downloads of
    models are links into a cache).

    Args:
        folder: that the file must be in, or below.
        name: as the other file says it.
        source: that other file, for the message.

    Raises:
        ValueError: the name is no text, or leads out of the folder on any system.
    """
    ways = (PurePosixPath, PureWindowsPath) if isinstance(name, str) else ()
    paths = [way(name) for way in ways]
    if not paths or any(p.anchor or not p.parts or ".." in p.parts for p in paths):
        raise ValueError(
            f"{source} names the file {name!r}, which is not in its folder: fetch it "
            "again from where you trust it"
        )
    check_plain(name, f"{source} names a file that")
    return folder / name


def plain(text: str) -> str:
    r"""Return a text with its control characters written out, such as ``\x1b``.

    A terminal takes them for commands: to move, to colour, to write the clipboard.
    """
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c)[0] == "C" and c not in "\n\t" else c
        for c in text
    )


def check_plain(value: Any, what: str) -> None:
    """Refuse control characters anywhere in what a file of names and numbers says.

    Args:
        value: a text, or dicts and lists of texts and others.
        what: has it, for the message.

    Raises:
        ValueError: a text has one.
    """
    if isinstance(value, str) and plain(value) != value:
        raise ValueError(
            f"{what} has control characters, which a terminal would obey: {value!r:.80}"
        )
    if isinstance(value, dict):
        value = [*value, *value.values()]
    for item in value if isinstance(value, list) else ():
        check_plain(item, what)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a file to write that takes the other's place when all of it is there.

    Args:
        path: the file to replace; its folder is made.

    Raises:
        OSError: it cannot be written, as on a full disk; the message has the remedy.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}); what was there is "
            "kept: make room or allow writing there, then go on with `jaxkd resume`"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file; a reader sees all of it or what was there before.

    Args:
        path: the file; its folder is made.
        text: all of it.

    Raises:
        OSError: as `replaced`.
    """
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")
