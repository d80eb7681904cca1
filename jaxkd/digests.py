"""Files that show damage: what this library writes carries its SHA-256.

Folders have it in a file ``SHA256SUMS``, which ``sha256sum -c`` reads too, JSON in a
field. What has none, as others write it or this library once did, is read as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from jaxkd.files import in_all_processes, write_atomically

DIGESTS = "SHA256SUMS"
"""Where a folder has its files' digests; the last line is that of the others."""

DIGEST = "sha256"
"""The field in which a JSON object has the digest of its other fields."""


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
        within = [
            file.relative_to(folder).as_posix()
            for file in filter(Path.is_file, folder.rglob("*"))
        ]
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
