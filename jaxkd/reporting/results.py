"""Results files: an experiment's records with all that is needed to make them again."""

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxkd.digests import DIGEST, check_json, json_digest
from jaxkd.files import check_plain, write_atomically
from jaxkd.reporting.records import Record
from jaxkd.untrusted import json_file

SCHEMA = 1
"""Version of the file's layout; a reader takes its own only."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclass(frozen=True)
class Results:
    """What one run of an experiment found, and how.

    Attributes:
        experiment: its name.
        preset: the configuration it started from.
        config: every field of the configuration.
        records: the measurements.
        versions: of Python and the packages; None for one that is not installed.
        machine: architecture, processor, cores, and JAX's devices.
        commit: of the library's git repository; None outside one.
        dirty: whether files other than results differed from the commit.
        date: when it ended, UTC, ISO 8601.
        seconds: wall time of the run, and before it was resumed, if it was not killed.
    """

    experiment: str
    preset: str
    config: dict[str, Any]
    records: list[Record]
    versions: dict[str, Any]
    machine: dict[str, Any]
    commit: str | None
    dirty: bool
    date: str
    seconds: float


def write_results(
    path: str | Path,
    *,
    experiment: str,
    preset: str,
    config: Any,
    records: Sequence[Record],
    seconds: float,
    code: tuple[str | None, bool],
) -> None:
    """Write a results file; a reader sees all of it or what was there before.

    Args:
        path: the file; its folder is made.
        experiment: its name.
        preset: the configuration it started from.
        config: the configuration, a dataclass.
        records: the measurements; curves are kept to 5 significant digits.
        seconds: wall time of the run, with what went before it was resumed.
        code: the commit the run began with and whether the tree had changes, from
            `code_state`.

    Raises:
        ValueError: no records, a value that is not finite, or two records of the same
            setting, method, seed and metric.
        OSError: the file cannot be written.
    """
    if not records:
        raise ValueError(f"records is empty: there is nothing to write to {path}")
    _check_records(records, f"cannot write {path}")
    commit, dirty = code
    results = Results(
        experiment=experiment,
        preset=preset,
        config=dataclasses.asdict(config),
        records=[],
        versions=versions(),
        machine=machine(),
        commit=commit,
        dirty=dirty,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(float(seconds), 3),
    )
    fields = {"schema": SCHEMA, **dataclasses.asdict(results)}
    del fields["records"]
    # One line a record, so that a change of results is readable in a diff.
    rows = [_to_json(r) for r in records]
    lines = [json.dumps(row, allow_nan=False) for row in rows]
    plain = json.loads(json.dumps(fields, allow_nan=False, default=str))
    fields = {DIGEST: json_digest({**plain, "records": rows}), **plain}
    head = json.dumps(fields, indent=2)
    text = f'{head[:-2]},\n  "records": [\n    {",\n    ".join(lines)}\n  ]\n}}\n'
    write_atomically(Path(path), text)


def read_results(path: str | Path) -> Results:
    """Read a results file.

    Raises:
        FileNotFoundError: it is missing; the message has the command that makes it.
        ValueError: it is half-written or corrupt, of another schema, lacks a field,
            holds a value that is not finite, or changed since it was written. The
            message has the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no results file {path}: {_remedy(path)}")
    found = _parse(path)
    content = {name: value for name, value in found.items() if name != DIGEST}
    schema = content.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema!r}, but this jaxkd reads schema {SCHEMA}: use "
            f"the jaxkd that wrote it, or {_remedy(path)}"
        )
    expected = {f.name: f.type for f in dataclasses.fields(Results)}
    _check_fields(content, expected, str(path), path)
    records = [_from_json(entry, i, path) for i, entry in enumerate(content["records"])]
    _check_records(records, f"{path} is corrupt", _remedy(path))
    try:  # Last, since what was wrong above says more.
        check_json(found)
    except ValueError as error:
        raise ValueError(f"{path} is corrupt ({error}): {_remedy(path)}") from None
    return Results(**{**content, "records": records})


def versions() -> dict[str, str | None]:
    """Return the versions of Python, of jaxkd and of what it computes with."""
    from jaxkd import __version__

    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "jaxkd": __version__,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, str | int | None]:
    """Return the machine's architecture, processor, cores, and JAX's devices."""
    devices = jax.devices()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": devices[0].device_kind,
        "devices": len(devices),
    }


def code_state() -> tuple[str | None, bool]:
    """Return the commit of this library's code, and whether it has changes."""
    return git_state(Path(__file__).parent)


def git_state(folder: Path) -> tuple[str | None, bool]:
    """Return a folder's git commit, and whether the repository differs from it.

    Results are left out of the comparison: each run writes some.

    Returns:
        (None, False) outside a repository or without git.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, False
    # From the root, since a pathspec holds below the current folder only.
    root = _git(folder, "rev-parse", "--show-toplevel") or str(folder)
    ignored = ":(exclude,glob)**/results/**"
    return commit, bool(_git(Path(root), "status", "--porcelain", "--", ".", ignored))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _to_json(record: Record) -> dict[str, Any]:
    curve = [float(f"{x:.5g}") for x in record.curve]
    return {**dataclasses.asdict(record), "value": float(record.value), "curve": curve}


def _remedy(path: Path) -> str:
    if path.parent.name == "results":
        return (
            f"make it with `jaxkd run {path.parent.parent.name} --preset {path.stem} "
            "--commit-results`"
        )
    return "make it with `jaxkd run EXPERIMENT --preset PRESET`"


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json_file(path)
        check_plain(content, "it")
    except ValueError as error:
        raise ValueError(
            f"{path} is half-written or corrupt ({error}): {_remedy(path)}"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not an object: {_remedy(path)}"
        )
    if (bad := _infinite(content)) is not None:
        raise ValueError(
            f"{path} holds {json.dumps(bad)}, a value that is not finite: a run "
            f"diverged or the file was edited; {_remedy(path)}"
        )
    return content


def _infinite(content: Any) -> float | None:
    """Return a number that is not finite, of all in what JSON has, or None."""
    if isinstance(content, float):
        return None if math.isfinite(content) else content
    parts = content.values() if isinstance(content, dict) else content
    found = map(_infinite, parts if isinstance(content, dict | list) else ())
    return next((bad for bad in found if bad is not None), None)


_KINDS: Mapping[Any, tuple[str, Any]] = {
    str: ("text", str),
    int: ("an integer", int),
    float: ("a finite number", (int, float)),
    bool: ("true or false", bool),
    str | None: ("text or null", (str, type(None))),
    dict[str, Any]: ("an object", dict),
    list[Record]: ("a list", list),
    tuple[float, ...]: ("a list of finite numbers", list),
}


def _check_fields(
    found: Any, expected: Mapping[str, Any], where: str, path: Path
) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {found!r:.60}, not an object: {_remedy(path)}")
    for problem, names in (
        ("lacks the field", [name for name in expected if name not in found]),
        ("has an unknown field", [name for name in found if name not in expected]),
    ):
        if names:
            raise ValueError(f"{where} {problem} {', '.join(names)}: {_remedy(path)}")
    for name, hint in expected.items():
        kind, classes = _KINDS[hint]
        value = found[name]
        fits = isinstance(value, classes)
        if isinstance(value, bool):
            fits = hint is bool  # Python counts true as the integer 1
        numbers = {float: [value], tuple[float, ...]: value}.get(hint, [])
        if not fits or not all(map(_finite, numbers)):
            raise ValueError(
                f"{where} has {name} = {value!r:.60}, which is not {kind}: "
                f"{_remedy(path)}"
            )


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An integer may be beyond what a float can hold.
    return number and abs(value) <= sys.float_info.max


def _from_json(entry: Any, index: int, path: Path) -> Record:
    expected = {f.name: f.type for f in dataclasses.fields(Record)}
    _check_fields(entry, expected, f"record {index} of {path}", path)
    return Record(
        **{
            **entry,
            "value": float(entry["value"]),
            "wall_time": float(entry["wall_time"]),
            "curve": tuple(map(float, entry["curve"])),
        }
    )


def _check_records(
    records: Sequence[Record],
    problem: str,
    remedy: str = "run it again with a lower learning rate, or leave that method out",
) -> None:
    seen = set()
    for r in records:
        key = (r.setting, r.method, r.seed, r.metric)
        what = f"{r.metric} of {r.method}, seed {r.seed}" + (
            f", in {r.setting}" if r.setting else ""
        )
        if key in seen:
            raise ValueError(f"{problem}: {what} is there twice; keep one")
        seen.add(key)
        numbers = (r.value, r.wall_time, *r.curve)
        if not all(map(math.isfinite, numbers)):
            bad = next(x for x in numbers if not math.isfinite(x))
            raise ValueError(f"{problem}: {what} holds {bad}; {remedy}")
