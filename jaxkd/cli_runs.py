"""``jaxkd run`` and ``jaxkd resume``: an experiment in a folder of its own."""

import dataclasses
import inspect
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from jaxkd.digests import check_json, write_json
from jaxkd.files import held, write_atomically
from jaxkd.reporting.experiment import (
    SEEDS,
    Experiment,
    config_from_json,
    load_experiment,
)
from jaxkd.reporting.results import (
    Results,
    code_state,
    read_results,
    write_results,
)
from jaxkd.reporting.run import Clock, Run, on_first_process
from jaxkd.untrusted import json_file

RUNS = Path("runs")
"""Where runs are kept, unless a folder is named."""

RUN_FILE, RESULTS_FILE = "run.json", "results.json"

console = Console()

Slug = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN-FOLDER")]


def show_results(experiment: Experiment, found: Results, *folders: Path) -> None:
    """Print the tables and claims of results; write plots and page to each folder."""
    from jaxkd.reporting.report import print_report, write_report

    claims, paper, varies = experiment.claims, experiment.paper, experiment.varies
    print_report(console, found, claims, paper, varies)
    for folder in folders:
        written = write_report(found, claims, folder, paper, varies)
        console.print("\nwritten: " + ", ".join(map(str, written)), soft_wrap=True)


def run_command(arguments: Sequence[str]) -> Callable[..., None]:
    """Return ``run`` with the fields of the named experiment's preset as options."""
    slug = next((a for a in arguments if not a.startswith("-")), None)
    experiment = None if slug is None else load_experiment(slug)
    preset = _option(arguments, "--preset") or "small"
    default = None if experiment is None else experiment.preset(preset)

    def run(
        slug: Slug,
        preset: str = "small",
        seeds: int | None = None,
        folder: Path | None = None,
        commit_results: bool = False,
        config: Any = default,
    ) -> None:
        """Run an experiment in a folder of its own: records, students, report.

        Name an experiment before --help to see the fields of its configuration, all of
        which can be set here.

        Args:
            slug: name of an experiment, as `jaxkd list` prints it.
            preset: configuration to start from.
            seeds: how many; they are 0, 1, …. None for the experiment's own number.
            folder: of the run; must be new. None for one in runs.
            commit_results: write the experiment's results/PRESET.json and plots too,
                which takes the preset as it is.
            config: overrides of the preset's fields.
        """
        assert experiment is not None
        usual = experiment.seeds.get(preset, SEEDS)
        seeds = usual if seeds is None else seeds
        if seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {seeds}")
        if commit_results:
            experiment.to_commit(preset)
        if commit_results and (config, seeds) != (default, usual):
            raise ValueError(
                f"--commit-results is for preset {preset!r} as it is, with {usual} "
                "seeds: leave the overrides out, or the flag"
            )
        folder = folder or RUNS / f"{slug}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
        if on_first_process(folder.exists):
            raise FileExistsError(
                f"{folder} exists: go on with it by `jaxkd resume {folder}`, or name a "
                "new folder"
            )
        folder.mkdir(parents=True, exist_ok=jax.process_count() > 1)
        saved = {
            "experiment": slug,
            "preset": preset,
            "seeds": seeds,
            "config": dataclasses.asdict(config),
            "commit_results": commit_results,
            "code": code_state(),
        }
        if jax.process_index() == 0:
            write_json(folder / RUN_FILE, saved)
        _execute(
            experiment, preset, config, seeds, folder, saved["code"], commit_results
        )

    if default is None:
        signature = inspect.signature(run)
        del run.__annotations__["config"]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p for n, p in signature.parameters.items() if n != "config"]
        )
    else:
        # Without a name of its own, its fields are options, and theirs dotted ones.
        run.__annotations__["config"] = Annotated[type(default), tyro.conf.arg(name="")]
    return run


def _option(arguments: Sequence[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def _execute(
    experiment: Experiment,
    preset: str,
    config: Any,
    seeds: int,
    folder: Path,
    code: tuple[str | None, bool],
    commit_results: bool,
) -> None:
    from jaxkd.reporting.report import report_folder
    from jaxkd.training.progress import ProgressBar

    console.print(
        f"{experiment.slug}, preset {preset}, {seeds} seeds; if it stops: "
        f"jaxkd resume {folder}",
        soft_wrap=True,
    )
    try:
        with (
            held(folder / ".lock"),
            Clock(folder) as clock,
            ProgressBar(console) as progress,
        ):
            run = Run(folder, progress, experiment.mesh)
            records = experiment.records(config, range(seeds), run)
    except (ValueError, FileNotFoundError):
        # A name that is not known: nothing was begun that could be resumed.
        begun = any(path.is_dir() for path in folder.iterdir())
        if jax.process_index() == 0 and not begun:
            shutil.rmtree(folder)
        raise
    if jax.process_index():
        return
    results = folder / RESULTS_FILE
    write_results(
        results,
        experiment=experiment.slug,
        preset=preset,
        config=config,
        records=records,
        seconds=clock.seconds,
        code=code,
    )
    folders = [folder]
    if commit_results:
        committed = experiment.to_commit(preset)
        write_atomically(committed, results.read_text())
        folders.append(report_folder(committed))
    show_results(experiment, read_results(results), *folders)


def resume(folder: RunFolder) -> None:
    """Go on with a run that was stopped; finished parts are not done again.

    Args:
        folder: of the run, as `jaxkd run` printed it.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: {folder} is not the folder of a run. `jaxkd run` "
            "prints where it keeps one"
        )
    try:
        saved = check_json(json_file(file))
        preset, seeds, commit = saved["preset"], saved["seeds"], saved["commit_results"]
        code, dirty = saved["code"]
        if type(seeds) is not int or seeds < 1 or type(commit) is not bool:
            raise TypeError(f"seeds {seeds!r} or commit_results {commit!r}")
        experiment = load_experiment(saved["experiment"])
        config = config_from_json(experiment.preset(preset), saved["config"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged or of another version ({error!r}): start again with "
            "`jaxkd run`"
        ) from None
    _execute(experiment, preset, config, seeds, folder, (code, dirty), commit)
