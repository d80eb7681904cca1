"""Experiments: how they are found, run in parts that survive a stop, and described.

An experiment is a file ``experiments/<slug>/experiment.py`` with a docstring, frozen
dataclass configurations ``PRESETS``, ``run(config, seeds, run) -> records``, ``CLAIMS``
and, where the paper has a table, ``PAPER`` (method -> metric -> value). What a preset
trains at full scale, ``full_scale(config) -> {name: (program, batch's shapes)}``, is
compiled ahead of time for the TPU slice ``SLICE``, on a mesh ``MESH`` (``"data"``).
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.checks import unknown_name
from jaxkd.files import write_atomically
from jaxkd.reporting.claims import Claim
from jaxkd.reporting.records import Record
from jaxkd.training.progress import ProgressBar
from jaxkd.types import Batch, Program

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """Where one run of an experiment keeps what it has done.

    Several processes (``jax.distributed``) work at the same part together.

    Attributes:
        folder: holds a folder for each part, with its checkpoints and records. It is
            one folder for all processes, on a disk that they share.
        progress: a bar to draw on, or None.
    """

    folder: Path
    progress: ProgressBar | None = None

    def part(self, name: str, compute: Callable[[Path], list[Record]]) -> list[Record]:
        """Return a part's records: those on disk if it was finished, or computed now.

        Args:
            name: of the part, unique in the run; may contain slashes.
            compute: gets the part's folder, where an unfinished part finds its
                checkpoints again.

        Raises:
            ValueError: the records on disk are damaged.
            OSError: the records cannot be written.
        """
        folder = self.folder / name
        done = folder / "records.json"
        if on_first_process(done.is_file):
            return read_part(folder)
        folder.mkdir(parents=True, exist_ok=True)
        records = compute(folder)
        if jax.process_index() == 0:
            write_atomically(done, json.dumps([dataclasses.asdict(r) for r in records]))
        return records


def on_first_process(ask: Callable[[], bool]) -> bool:
    """Return what the first of all processes finds, for all to do the same."""
    if jax.process_count() == 1:
        return ask()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return bool(broadcast_one_to_all(np.asarray(ask())))


def read_part(folder: Path) -> list[Record]:
    """Return the records of a finished part of a run.

    Args:
        folder: the part's.

    Raises:
        ValueError: they are damaged; the message names the file and the remedy.
    """
    path = folder / "records.json"
    try:
        return [
            Record(**{**entry, "curve": tuple(entry["curve"])})
            for entry in json.loads(path.read_text())
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is half-written or corrupt ({error!r}): delete it, and `jaxkd "
            "resume` repeats this part"
        ) from None


@dataclass(frozen=True)
class Experiment:
    """One paper's experiment.

    Attributes:
        slug: the name of its folder.
        title: the first line of its docstring.
        summary: the rest.
        folder: holds ``experiment.py``, ``README.md`` and ``results``.
        presets: configurations by name.
        run: ``(config, seeds, run) -> records``.
        claims: what the records are to show.
        paper: the paper's numbers, by method and metric.
        full_scale: ``config -> {name: (program, shapes of its batch)}``, or None.
        topology: the TPU slice that full scale is meant for.
        mesh: how the slice is used, a name of ``jaxkd.training.MESHES``.
    """

    slug: str
    title: str
    summary: str
    folder: Path
    presets: Mapping[str, Any]
    run: Callable[[Any, Sequence[int], Run], list[Record]]
    claims: Sequence[Claim]
    paper: Mapping[str, Mapping[str, float]]
    full_scale: Callable[[Any], Mapping[str, tuple[Program, Batch]]] | None = None
    topology: str = "v5e:2x4"
    mesh: str = "data"

    def preset(self, name: str) -> Any:
        """Return the configuration of that name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.presets:
            raise ValueError(unknown_name(f"preset of {self.slug}", name, self.presets))
        return self.presets[name]


def experiments_folder() -> Path:
    """Return the folder of experiments: ``./experiments``, or the source checkout's.

    Raises:
        FileNotFoundError: neither exists.
    """
    checkout = Path(__file__).resolve().parent.parent / "experiments"
    for folder in (Path("experiments"), checkout):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        "there is no folder experiments here: run jaxkd from a clone of its repository"
    )


def slugs() -> list[str]:
    """Return the names of all experiments."""
    return sorted(p.parent.name for p in experiments_folder().glob("*/experiment.py"))


def load_experiment(slug: str) -> Experiment:
    """Return the experiment of that name.

    Raises:
        ValueError: there is none.
    """
    if slug not in slugs():
        raise ValueError(unknown_name("experiment", slug, slugs()))
    folder = experiments_folder() / slug
    root = str(folder.parent.parent.resolve())
    if root not in sys.path:
        sys.path.insert(0, root)
    module = importlib.import_module(f"experiments.{slug}.experiment")
    title, _, summary = (module.__doc__ or slug).partition("\n")
    return Experiment(
        slug=slug,
        title=title.strip(),
        summary=summary.strip(),
        folder=folder,
        presets=module.PRESETS,
        run=module.run,
        claims=module.CLAIMS,
        paper=getattr(module, "PAPER", {}),
        full_scale=getattr(module, "full_scale", None),
        topology=getattr(module, "SLICE", "v5e:2x4"),
        mesh=getattr(module, "MESH", "data"),
    )
