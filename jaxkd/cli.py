"""The command ``jaxkd``: experiments, their reports, exports, and teacher caches."""

import dataclasses
import inspect
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxkd.checks import unknown_name
from jaxkd.recipes.cache_teacher import cache_teacher
from jaxkd.reporting.experiment import (
    RUN_FILE,
    Experiment,
    Run,
    load_experiment,
    on_first_process,
    read_part,
    slugs,
)

console = Console()

Slug = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN-FOLDER")]


def list_experiments() -> None:
    """List the experiments, and the methods, models and data sets by name."""
    from jaxkd import data, methods, models, papers
    from jaxkd.network import Network
    from jaxkd.types import Method

    table = Table("experiment", "title", "presets", box=None)
    for slug in slugs():
        experiment = load_experiment(slug)
        table.add_row(slug, escape(experiment.title), ", ".join(experiment.presets))
    console.print(table)
    for kind, names in (
        ("methods", sorted(methods.METHODS | papers.constructors(Method))),
        ("models", sorted(models.MODELS | papers.constructors(Network))),
        ("data sets", data.DATASETS),
    ):
        console.print(f"\n[bold]{kind}[/bold]  {', '.join(names)}")


def show(slug: Slug) -> None:
    """Show what an experiment does: its presets field by field, and its claims.

    Args:
        slug: name of an experiment, as `jaxkd list` prints it.
    """
    experiment = load_experiment(slug)
    console.print(f"[bold]{escape(experiment.title)}[/bold]\n")
    # Lines were broken for the source file; the terminal breaks them again.
    for paragraph in experiment.summary.split("\n\n"):
        console.print(escape(" ".join(paragraph.split())) + "\n")
    table = Table(title="presets", title_justify="left", box=None)
    table.add_column("field", no_wrap=True)
    for name in experiment.presets:
        table.add_column(name, overflow="fold")
    rows = {name: dataclasses.asdict(c) for name, c in experiment.presets.items()}
    for field in dict.fromkeys(f for row in rows.values() for f in row):
        table.add_row(
            field, *(escape(_text(row.get(field, ""))) for row in rows.values())
        )
    console.print(table)
    console.print("\n[bold]claims[/bold]")
    for claim in experiment.claims:
        console.print(f"  {escape(claim.name)}: {escape(claim.statement)}")
    found = sorted((experiment.folder / "results").glob("*.json"))
    console.print(f"\n[bold]results[/bold]  {', '.join(map(str, found)) or 'none yet'}")


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, tuple) else str(value)


def report(
    slug: Slug,
    preset: str = "small",
    results: Path | None = None,
    markdown: bool = False,
) -> None:
    """Print an experiment's table and claims, and write its plots and HTML page.

    Args:
        slug: name of an experiment, as `jaxkd list` prints it.
        preset: whose results to read.
        results: the results file, instead of the experiment's own.
        markdown: print Markdown for a README, and write nothing.
    """
    from jaxkd.reporting.report import markdown_report, print_report, write_report
    from jaxkd.reporting.results import read_results

    experiment = load_experiment(slug)
    experiment.preset(preset)
    path = results or _results_file(experiment, preset)
    found = read_results(path)
    if markdown:
        print(markdown_report(found, experiment.claims, experiment.paper))
        return
    print_report(console, found, experiment.claims, experiment.paper)
    written = write_report(
        found, experiment.claims, path.parent / found.preset, experiment.paper
    )
    console.print("\nwritten: " + ", ".join(str(p) for p in written), soft_wrap=True)


def compile_(
    slug: Slug,
    preset: str = "paper",
    topology: str | None = None,
    mesh: str | None = None,
    only: str | None = None,
) -> int:
    """Compile what a preset trains for a TPU slice that need not be here.

    Prints what a step of each program needs of a chip, and writes it to the
    experiment's results/compiled.json. The exit status is 1 if one does not fit.

    Args:
        slug: name of an experiment, as `jaxkd list` prints it.
        preset: whose programs to compile.
        topology: chip and shape, such as v5e:2x4, v5p:4x4x8 or v6e:16x16; None for the
            experiment's own.
        mesh: how the slice is used, such as data or fsdp; None for the experiment's.
        only: the name of one program.
    """
    from jaxkd.reporting.plans import print_plans, read_plans, write_plans
    from jaxkd.training.ahead import DoesNotFit, plan_step

    experiment = load_experiment(slug)
    config = experiment.preset(preset)
    if experiment.full_scale is None:
        raise ValueError(
            f"{slug} has no full_scale(config): there is nothing to compile"
        )
    programs = experiment.full_scale(config)
    if only is not None and only not in programs:
        raise ValueError(unknown_name(f"program of {slug}", only, programs))
    topology, mesh = topology or experiment.topology, mesh or experiment.mesh
    path = experiment.folder / "results" / "compiled.json"
    plans, failures = {}, 0
    for name in programs if only is None else [only]:
        console.print(f"{name} for {topology}, mesh {mesh} …", soft_wrap=True)
        try:
            plans[name] = plan_step(*programs[name], topology, mesh)
        except DoesNotFit as error:
            failures += 1
            console.print(f"[red]does not fit:[/red] {escape(str(error))}")
            continue
        write_plans(path, {**(read_plans(path) if path.is_file() else {}), **plans})
    print_plans(console, plans)
    if plans:
        console.print(f"written: {path}", soft_wrap=True)
    return 1 if failures else 0


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
        saved = json.loads(file.read_text())
        slug, preset, seeds = saved["experiment"], saved["preset"], saved["seeds"]
        values, results = saved["config"], saved["results"]
        commit, dirty = saved["code"]
        experiment = load_experiment(slug)
        config = type(experiment.preset(preset))(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged or of another version ({error!r}): start again with "
            "`jaxkd run`"
        ) from None
    _execute(experiment, preset, config, seeds, folder, Path(results), (commit, dirty))


def export(
    folder: RunFolder,
    to: Path,
    part: str | None = None,
) -> None:
    """Export a trained student: weights, configuration, and a portable program.

    Writes model.safetensors and config.json, which `jaxkd.interop.load_pretrained`
    reads, and transformers where it has such a model; and for networks of images
    model.stablehlo, the forward pass with the weights inside for any batch size, which
    `jax.export.deserialize` runs without this library.

    Args:
        folder: of a run.
        to: the folder to write; must not exist.
        part: which student, such as mlp/kd/seed0; None for the run's most accurate.
    """
    from jaxkd.interop import export_program, load_pretrained

    students = {
        str(p.parent.relative_to(folder)): p for p in sorted(folder.glob("**/student"))
    }
    if not students:
        raise FileNotFoundError(f"{folder} holds no trained student to export")
    part = part or max(students, key=lambda name: _accuracy(folder / name))
    if part not in students:
        raise ValueError(unknown_name("part", part, students))
    if to.exists():
        raise FileExistsError(f"{to} exists: name a new folder, so nothing is lost")
    load_pretrained(students[part])
    partial = to.with_name(f"{to.name}.partial")
    shutil.copytree(students[part], partial, dirs_exist_ok=True)
    if "input_shape" in json.loads((partial / "config.json").read_text()):
        export_program(partial)
    partial.rename(to)
    console.print(f"exported {part} to {to}", soft_wrap=True)


def _accuracy(part: Path) -> float:
    records = read_part(part)
    return next(r.value for r in records if r.metric == "last_accuracy")


def _results_file(experiment: Experiment, preset: str) -> Path:
    return experiment.folder / "results" / f"{preset}.json"


def _run_command(arguments: Sequence[str]) -> Callable[..., None]:
    """Return ``run`` with the fields of the named experiment's preset as options."""
    slug = next((a for a in arguments if not a.startswith("-")), None)
    experiment = None if slug is None else load_experiment(slug)
    preset = _option(arguments, "--preset") or "small"
    default = None if experiment is None else experiment.preset(preset)

    def run(
        slug: Slug,
        preset: str = "small",
        seeds: int = 3,
        folder: Path | None = None,
        results: Path | None = None,
        config: Any = default,
    ) -> None:
        """Run an experiment, write its results, and print its report.

        Name an experiment before --help to see the fields of its configuration, all of
        which can be set here.

        Args:
            slug: name of an experiment, as `jaxkd list` prints it.
            preset: configuration to start from.
            seeds: how many; they are 0, 1, ….
            folder: where to keep checkpoints and parts; must be new.
            results: the file to write; None for the experiment's results/PRESET.json.
            config: overrides of the preset's fields.
        """
        assert experiment is not None
        if seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {seeds}")
        folder = (
            folder or Path("runs") / f"{slug}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
        )
        if on_first_process(folder.exists):
            raise FileExistsError(
                f"{folder} exists: go on with it by `jaxkd resume {folder}`, or name a "
                "new folder"
            )
        from jaxkd.reporting.results import code_state

        folder.mkdir(parents=True, exist_ok=jax.process_count() > 1)
        results = results or _results_file(experiment, preset)
        saved = {
            "experiment": slug,
            "preset": preset,
            "seeds": seeds,
            "config": dataclasses.asdict(config),
            "results": str(results),
            "code": code_state(),
        }
        if jax.process_index() == 0:
            (folder / RUN_FILE).write_text(json.dumps(saved, indent=2))
        _execute(experiment, preset, config, seeds, folder, results, saved["code"])

    if default is None:
        signature = inspect.signature(run)
        del run.__annotations__["config"]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p for n, p in signature.parameters.items() if n != "config"]
        )
    else:
        run.__annotations__["config"] = tyro.conf.OmitArgPrefixes[type(default)]
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
    results: Path,
    code: tuple[str | None, bool],
) -> None:
    from jaxkd.reporting.results import write_atomically, write_results
    from jaxkd.training.progress import ProgressBar

    console.print(
        f"{experiment.slug}, preset {preset}, {seeds} seeds; if it stops: "
        f"jaxkd resume {folder}",
        soft_wrap=True,
    )
    clock = folder / "seconds.txt"
    seconds = float(clock.read_text()) if clock.is_file() else 0.0
    started = time.perf_counter()
    try:
        with ProgressBar(console) as progress:
            records = experiment.run(config, range(seeds), Run(folder, progress))
    finally:
        seconds += time.perf_counter() - started
        if jax.process_index() == 0:
            write_atomically(clock, f"{seconds:.3f}")
    if jax.process_index():
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    write_results(
        results,
        experiment=experiment.slug,
        preset=preset,
        config=config,
        records=records,
        seconds=seconds,
        code=code,
    )
    report(experiment.slug, preset, results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    An error of the user's is one line on standard error, without a traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = arguments[0] if arguments else "--help"
        commands = {
            "list": list_experiments,
            "show": show,
            "run": _run_command(arguments[1:] if command == "run" else []),
            "report": report,
            "resume": resume,
            "export": export,
            "compile": compile_,
            "cache-teacher": cache_teacher,
        }
        if command not in commands and not command.startswith("-"):
            raise ValueError(unknown_name("command", command, commands))
        status = tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments or ["--help"],
            prog="jaxkd",
            description=__doc__,
        )
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        Console(stderr=True).print(
            f"[red]error:[/red] {escape(str(error))}", soft_wrap=True
        )
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; `jaxkd resume` goes on from here")
        return 130
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
