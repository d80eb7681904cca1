"""Files that are complete or absent, that show damage, and that one process writes.

What this library writes carries its SHA-256: folders in a file ``SHA256SUMS``, which
``sha256sum -c`` reads too, and JSON in a field. What has none, as others write it or
this library once did, is read as it is.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import socket
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jax
import numpy as np

from jaxkd.arguments import checked

logger = logging.getLogger(__name__)

DIGESTS = "SHA256SUMS"
"""Where a folder has its files' digests; the last line is that of the others."""

DIGEST = "sha256"
"""The field in which a JSON object has the digest of its other fields."""


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
            for path in _files(partial):
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


def write_digests(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write a folder's SHA256SUMS.

    Args:
        folder: of the files.
        names: of files to add to those that it has, relative to the folder; None for
            all files there, and in the folders within.

    Raises:
        ValueError: the SHA256SUMS to add to is damaged.
        OSError: as `replaced`.
    """
    path, found = folder / DIGESTS, {}
    if names is None:
        within = [file.relative_to(folder).as_posix() for file in _files(folder)]
        names = [name for name in within if name != DIGESTS]
    elif path.is_file():
        found = _listed(path)
    found |= _digests(folder, names)
    lines = "".join(f"{found[name]}  {name}\n" for name in sorted(found))
    # The last line shows when some of the others are lost.
    write_atomically(path, f"{lines}# {_sha256(lines.encode())}\n")


def verify_digests(
    folder: Path, names: Iterable[str] | None = None, *, together: bool = False
) -> None:
    """Refuse files that are not as `write_digests` found them.

    Every file is read once, several at a time. Files that were added later, and folders
    without SHA256SUMS, have nothing to be compared with and pass.

    Args:
        folder: of the files.
        names: which of them, relative to the folder; None for all.
        together: whether all processes call this at once: each then reads a part of the
            files, and all of them refuse what one of them does.

    Raises:
        ValueError: a file is missing or differs. It names the files and the remedy.
    """
    path, problem = folder / DIGESTS, ""
    if path.is_file():
        try:
            expected = _listed(path)
            if names is not None:
                expected = {name: expected[name] for name in names if name in expected}
            mine = sorted(expected)
            if together:
                mine = mine[jax.process_index() :: jax.process_count()]
            found = _digests(folder, mine)
            wrong = [name for name in mine if found[name] != expected[name]]
        except (OSError, ValueError):
            wrong = [DIGESTS]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            problem = (
                f"{folder} is damaged: {', '.join(wrong[:3])}{more} changed since it "
                "was written. Fetch or write it again; if the change is yours, delete "
                f"its {DIGESTS}"
            )
    if problem := in_all_processes(problem) if together else problem:
        raise ValueError(problem)


def _listed(path: Path) -> dict[str, str]:
    """Return the digests by file.

    Raises:
        ValueError: the list is damaged.
    """
    *lines, seal = path.read_bytes().decode().splitlines(keepends=True) or [""]
    if seal != f"# {_sha256(''.join(lines).encode())}\n":
        raise ValueError(f"{path} is damaged: write the files again")
    pairs = [line.rstrip("\n").split("  ", 1) for line in lines]
    return {name: digest for digest, name in pairs}


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return each file's digest; what it says in place of one that cannot be read."""
    names = list(names)

    def digest(name: str) -> str:
        try:
            with (folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:  # hashlib lets other threads run
        return dict(zip(names, pool.map(digest, names), strict=True))


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


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write an object as JSON, atomically and with its digest.

    Args:
        path: the file; its folder is made.
        content: what JSON can hold.
        indent: of each level; None for one line.

    Raises:
        OSError: as `replaced`.
    """
    write_atomically(path, json.dumps(sealed(content), indent=indent) + "\n")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its digest, for `check_json`."""
    return {**content, DIGEST: json_digest(content)}


def check_json(content: dict[str, Any]) -> dict[str, Any]:
    """Return an object without its digest, if it has one.

    Args:
        content: as ``json.loads`` returns it.

    Raises:
        ValueError: the digest is another object's.
    """
    rest = {name: value for name, value in content.items() if name != DIGEST}
    if DIGEST in content and content[DIGEST] != json_digest(rest):
        raise ValueError(
            f"its {DIGEST} is of other content: it changed since it was written; if "
            "the change is yours, delete that field"
        )
    return rest


def json_digest(content: Mapping[str, Any]) -> str:
    """Return the digest of an object, however it is laid out as text."""
    # Once through JSON first, where tuples are lists and keys are text.
    plain = json.loads(json.dumps(content))
    return _sha256(json.dumps(plain, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
