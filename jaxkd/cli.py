"""The command ``jaxkd``: distil your own models; experiments, reports, caches."""

import dataclasses
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxkd import __version__
from jaxkd.checks import unknown_name
from jaxkd.cli_runs import (
    RUNS,
    RunFolder,
    Slug,
    console,
    resume,
    run_command,
    show_results,
)
from jaxkd.files import plain, replaced_folder
from jaxkd.recipes.cache_teacher import cache_teacher
from jaxkd.recipes.command import distill, distill_command
from jaxkd.reporting.experiment import load_experiment, slugs
from jaxkd.reporting.run import read_part
from jaxkd.untrusted import json_file


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
    rows = {name: dict(_fields(c)) for name, c in experiment.presets.items()}
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


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a configuration and of those in it, by dotted names."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, tuple) else str(value)


def report(
    slug: Slug,
    preset: str = "small",
    results: Path | None = None,
    markdown: bool = False,
    commit_results: bool = False,
) -> None:
    """Print an experiment's table and claims, and write its plots and HTML page.

    Args:
        slug: name of an experiment, as `jaxkd list` prints it.
        preset: whose committed results to read; page and plots go to
            runs/SLUG-PRESET-report.
        results: a results file, instead of the committed one; page and plots go to a
            folder beside it, of its name.
        markdown: print Markdown for a README, and write nothing.
        commit_results: write the plots beside the committed results.
    """
    from jaxkd.reporting.report import markdown_report, report_folder
    from jaxkd.reporting.results import read_results

    experiment = load_experiment(slug)
    experiment.preset(preset)
    committed = experiment.committed(preset)
    if results is None and not committed.is_file():
        raise FileNotFoundError(
            f"there are no committed results of {slug}, preset {preset} (an installed "
            "package has none): name a run's file by --results"
        )
    found = read_results(results or committed)
    if found.experiment != slug:
        raise ValueError(
            f"{results or committed} holds results of {found.experiment}, whose claims "
            f"are not those of {slug}: `jaxkd report {found.experiment} --results …`"
        )
    if markdown:
        print(
            markdown_report(
                found, experiment.claims, experiment.paper, experiment.varies
            )
        )
        return
    folder = RUNS / f"{slug}-{preset}-report"
    if results is not None:
        folder = report_folder(results)
    elif commit_results:
        folder = report_folder(experiment.to_commit(preset))
    show_results(experiment, found, folder)


def claims() -> None:
    """Count the claims that hold, by all experiments' committed results."""
    from jaxkd.reporting.summary import print_summary

    print_summary(console)


def compile_(
    slug: Slug,
    preset: str = "paper",
    topology: str | None = None,
    mesh: str | None = None,
    only: str | None = None,
    commit_results: bool = False,
) -> int:
    """Compile what a preset trains for a TPU slice that need not be here.

    Prints what a step of each program needs of a chip, and writes it to
    runs/SLUG-compiled.json. The exit status is 1 if one does not fit.

    Args:
        slug: name of an experiment, as `jaxkd list` prints it.
        preset: whose programs to compile.
        topology: chip and shape, such as v5e:2x4, v5p:4x4x8 or v6e:16x16; None for the
            experiment's own.
        mesh: how the slice is used, such as data or fsdp; None for the experiment's.
        only: the name of one program.
        commit_results: write to the experiment's results/compiled.json instead.
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
    path = RUNS / f"{slug}-compiled.json"
    if commit_results:
        path = experiment.to_commit("compiled")
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
        part: which student, such as mlp/kd/seed0; None for the run's best.
    """
    from jaxkd.interop import export_program, load_pretrained

    students = {
        str(p.parent.relative_to(folder)): p for p in sorted(folder.glob("**/student"))
    }
    if not students:
        raise FileNotFoundError(f"{folder} holds no trained student to export")
    part = part or max(students, key=lambda name: _score(folder / name))
    if part not in students:
        raise ValueError(unknown_name("part", part, students))
    if to.exists():
        raise FileExistsError(f"{to} exists: name a new folder, so nothing is lost")
    load_pretrained(students[part])
    with replaced_folder(to) as partial:
        shutil.copytree(students[part], partial, dirs_exist_ok=True)
        if "input_shape" in json_file(partial / "config.json"):
            export_program(partial)
    console.print(f"exported {part} to {to}", soft_wrap=True)


def _score(part: Path) -> float:
    records = read_part(part)
    found = {record.metric: record.value for record in records}
    return found.get("last_accuracy", -found.get("nll", math.inf))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    An error of the user's is one line on standard error, without a traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"jaxkd {__version__}")
        return 0
    try:
        command = arguments[0] if arguments else "--help"
        commands = {
            "distill": distill,
            "list": list_experiments,
            "show": show,
            "run": run_command(arguments[1:] if command == "run" else []),
            "report": report,
            "claims": claims,
            "resume": resume,
            "export": export,
            "compile": compile_,
            "cache-teacher": cache_teacher,
        }
        if command not in commands and not command.startswith("-"):
            raise ValueError(unknown_name("command", command, commands))
        if command == "distill":
            return distill_command(arguments[1:])
        status = tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments or ["--help"],
            prog="jaxkd",
            description=__doc__,
        )
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        Console(stderr=True).print(
            f"[red]error:[/red] {escape(plain(str(error)))}", soft_wrap=True
        )
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "stopped; `jaxkd resume`, or the same `jaxkd distill`, goes on from here"
        )
        return 130
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
