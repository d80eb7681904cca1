"""Experiments: what a paper's experiment is made of, and how one is found by its name.

``experiments/<slug>/experiment.py`` exports one ``EXPERIMENT``. Its presets are frozen
dataclasses, in which smaller ones may stand; its ``arms`` are the rows of its tables.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxkd.checks import unknown_name
from jaxkd.reporting.claims import Claim
from jaxkd.reporting.paper import Paper
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, Run, Task, run_arms
from jaxkd.types import Batch, Program

PACKAGED = "jaxkd_experiments"
"""What holds the experiments of an installed package, without their results."""

SEEDS = 3
"""Of a run, where an experiment does not say otherwise."""


@dataclass(frozen=True)
class Experiment:
    """One paper's experiment.

    Attributes:
        presets: configurations by name; ``small`` runs here, ``paper`` is the paper's.
        arms: ``(config, run, seed) ->`` the rows with what each is trained and tested
            on. It refuses names it does not know before it trains anything.
        run: ``(config, seeds, run) -> records``, in place of ``arms`` where training
            rows is not all there is.
        claims: what the records are to show.
        paper: the paper's numbers, by method and metric.
        full_scale: ``config -> {name: (program, shapes of its batch)}``, for compiling.
        topology: the TPU slice that full scale is meant for.
        mesh: how the slice is used, a name of ``jaxkd.training.MESHES``.
        seeds: of a run, by preset; others have `SEEDS`.
        varies: what is another with every seed. With ``teacher`` or ``split`` the arms
            are made anew for each.
        slug: the name of its folder; this and what follows is known when it is loaded.
        title: the first line of its docstring.
        summary: the rest.
        folder: holds ``experiment.py``, ``README.md`` and ``results``.
    """

    presets: Mapping[str, Any]
    arms: Callable[[Any, Run, int], Iterable[tuple[Arm, Task]]] | None = None
    run: Callable[[Any, Sequence[int], Run], list[Record]] | None = None
    claims: Sequence[Claim] = ()
    paper: Paper = field(default_factory=dict)
    full_scale: Callable[[Any], Mapping[str, tuple[Program, Batch]]] | None = None
    topology: str = "v5e:2x4"
    mesh: str = "data"
    seeds: Mapping[str, int] = field(default_factory=dict)
    varies: tuple[str, ...] = ("student", "order")
    slug: str = ""
    title: str = ""
    summary: str = ""
    folder: Path = Path()

    def preset(self, name: str) -> Any:
        """Return the configuration of that name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.presets:
            raise ValueError(unknown_name(f"preset of {self.slug}", name, self.presets))
        return self.presets[name]

    def committed(self, name: str) -> Path:
        """Return the file of results that is part of the source, such as a preset's."""
        return self.folder / "results" / f"{name}.json"

    def to_commit(self, name: str) -> Path:
        """Return `committed`, where the source can be written to.

        Raises:
            ValueError: the experiment is an installed package's.
        """
        if PACKAGED in self.folder.parts:
            raise ValueError(
                f"--commit-results writes to the repository, but {self.slug} is an "
                "installed package's: run it in a clone, or leave the flag out"
            )
        return self.committed(name)

    def records(self, config: Any, seeds: Sequence[int], run: Run) -> list[Record]:
        """Return what a run of all arms measures.

        Args:
            config: a preset's, or like one.
            seeds: of the run.
            run: keeps what is done.

        Raises:
            ValueError: the experiment has neither ``arms`` nor ``run``.
        """
        if self.run is not None:
            return self.run(config, seeds, run)
        if self.arms is None:
            raise ValueError(f"experiment {self.slug!r} has neither arms nor run")
        anew = not {"teacher", "split"}.isdisjoint(self.varies)
        return run_arms(self.arms, config, seeds, run, anew=anew)


def experiments_folder() -> Path:
    """Return the experiments here, those of the source checkout, or the package's.

    Raises:
        FileNotFoundError: there are none.
    """
    root = Path(__file__).resolve().parents[2]
    for parent in (Path(), root, root / PACKAGED):
        if any(parent.glob("experiments/*/experiment.py")):
            return parent / "experiments"
    raise FileNotFoundError(
        "no folder experiments holds an experiment.py: install jaxkd anew, or run it "
        "from a clone of its repository"
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
    module: Any = importlib.import_module(f"experiments.{slug}.experiment")
    title, _, summary = (module.__doc__ or slug).partition("\n")
    return dataclasses.replace(
        module.EXPERIMENT,
        slug=slug,
        title=title.strip(),
        summary=summary.strip(),
        folder=folder,
    )


def config_from_json(preset: Any, values: Mapping[str, Any]) -> Any:
    """Return a configuration like a preset, with the values that JSON has kept of it.

    Args:
        preset: a dataclass, in which others may stand.
        values: its fields as ``dataclasses.asdict`` names them; lists become tuples.

    Raises:
        TypeError: the fields are not the preset's.
    """
    names = {f.name for f in dataclasses.fields(preset)}
    if names != set(values):
        raise TypeError(f"other fields: {', '.join(sorted(names ^ set(values)))}")
    return dataclasses.replace(
        preset, **{n: _restored(getattr(preset, n), v) for n, v in values.items()}
    )


def _restored(before: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(before):
        return config_from_json(before, value)
    numbers = isinstance(before, int | float) and isinstance(value, int | float)
    same = isinstance(value, list if isinstance(before, tuple) else type(before))
    if None not in (before, value) and not (same or numbers):
        raise TypeError(f"{value!r:.80} in place of {before!r:.80}")
    if isinstance(value, list):
        return tuple(_restored(None, item) for item in value)
    if isinstance(value, dict):
        return {name: _restored(None, item) for name, item in value.items()}
    return value
