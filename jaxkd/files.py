"""Files that are complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxkd.arguments import checked


@checked()
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


@checked()
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
