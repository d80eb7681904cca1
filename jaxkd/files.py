"""Files that are complete or absent, whose names are names, and that one run writes."""

import contextlib
import logging
import os
import shutil
import socket
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxkd.arguments import checked

logger = logging.getLogger(__name__)


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
            _flush(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}); what was there is "
            "kept: make room or allow writing there, then go on with `jaxkd resume`"
        ) from error


@checked()
def write_tensors(
    arrays: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write a file of safetensors that others may read as they may any new file.

    Args:
        arrays: by name.
        path: the file.
        metadata: of the file.

    Raises:
        OSError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file({**arrays}, path, metadata={**metadata})
    # What safetensors writes is its owner's alone.
    path.chmod(mode)


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


@contextmanager
def replaced_folder(
    folder: Path, ours: Callable[[str], bool] = lambda name: True
) -> Iterator[Path]:
    """Give a folder to fill that takes the other's place when all of it is there.

    A stop leaves the old files or the new ones, never some of each. Only one between
    the two renames leaves no folder: the old one is then at `kept_aside`.

    Args:
        folder: to replace; the folder around it is made.
        ours: whether a file of this name is to be replaced; others stay in the folder.

    Raises:
        OSError: it cannot be written; the message has the remedy.
    """
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    old = kept_aside(folder)
    try:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for path in filter(Path.is_file, partial.rglob("*")):
                _flush(path)
            _clear(old, folder, ours)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            _clear(old, folder, ours)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error.strerror or error}); what was there "
            "is kept: make room or allow writing there, and in the folder around it"
        ) from error


def kept_aside(folder: Path) -> Path:
    """Return where `replaced_folder` has the old folder while the new one comes."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.old")


def _clear(old: Path, folder: Path, ours: Callable[[str], bool]) -> None:
    """Delete the old folder, but for what is not ours; put it back if it is alone."""
    if not old.exists():
        return
    if not folder.exists():
        old.rename(folder)
        return
    for path in old.iterdir():
        if not ours(path.name) and not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(old)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock, so that no other run writes to the same folder.

    The system takes it back when the process ends, however that ends. Several processes
    all call this, and the first holds it for all of them.

    Args:
        path: of the lock file, in the folder that it is for; it exists while the lock
            is held, and says by whom.

    Raises:
        BlockingIOError: it is held already. It names the host and the process.
        OSError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(_locked(path))
            except OSError as error:
                problem = error
        if told := in_all_processes("" if problem is None else str(problem)):
            raise problem or OSError(f"{path.parent} cannot be used: {told}")
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with contextlib.ExitStack() as stack:
        while True:
            try:
                file = stack.enter_context(path.open("a+"))
            except OSError as error:
                raise OSError(
                    f"{path.parent} cannot be written to ({error.strerror}): allow "
                    "writing there, or name another folder"
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise BlockingIOError(
                    f"{path.parent} is in use by {file.read().strip() or 'another run'}"
                    ": wait until it has ended or stop it, or name another folder"
                ) from None
            except OSError as error:  # a file system without locks
                logger.warning(
                    "%s cannot be locked (%s): let no other run write there",
                    path.parent,
                    error.strerror,
                )
                break
            # The holder before may have deleted the file after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def in_all_processes(problem: str) -> str:
    """Return this process's problem, or that another has one; "" if none has.

    All processes call it, so that all of them go on or none does.
    """
    if jax.process_count() == 1:
        return problem
    from jax.experimental.multihost_utils import process_allgather

    bad = process_allgather(np.asarray(bool(problem)))
    if problem or not bad.any():
        return problem
    return f"process {int(bad.argmax())} has a problem there: see what it says"
