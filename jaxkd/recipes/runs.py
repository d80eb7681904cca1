"""What every recipe does with what it has made ready: train, compare, write.

A run keeps its checkpoints and numbers in a folder beside the one that it is to write,
so that the same call goes on after a stop, and the folder itself is there whole or not
at all.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.digests import write_digests
from jaxkd.files import replaced_folder, write_atomically
from jaxkd.recipes.recipe import Recipe, plain, read_yaml, to_yaml
from jaxkd.recipes.report import Made, print_rows, write_pages
from jaxkd.reporting.metrics import higher_is_better
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Clock, History, Run, on_first_process, records
from jaxkd.training import Checkpoints, JsonLines, MetricWriter, fit, make_mesh
from jaxkd.training.progress import ProgressBar
from jaxkd.training.saved import changes
from jaxkd.types import Program, Variables, deployed

TEACHER, BEFORE, AFTER = "teacher", "student before", "student after"
CONTROL = "cross-entropy alone"
"""The rows of a run's table."""

Metrics = Mapping[str, float]


@checked()
@dataclass(frozen=True)
class Plan:
    """What a recipe has made ready.

    Attributes:
        program: trains the student; its state is `deployed`.
        batches: of the training, which know their place (`jaxkd.data.batches`).
        steps: of the training.
        evaluate: ``variables -> metrics`` of the student on what was held out.
        before: the student's variables before the training.
        metric: the one of them that says which student is the best.
        save: ``(folder, variables) ->`` None; writes the student there. Of several
            processes all call it.
        teacher: ``() -> metrics`` of the teacher on the same; None where it has none.
        control: the program and the batches of the training without a teacher.
        about: what the model card says of teacher, student, data and method.
        answers: ``variables ->`` rows of texts, to look at, by the columns' names.
    """

    program: Program
    batches: Iterable[Any]
    steps: int
    evaluate: Callable[[Variables], Metrics]
    before: Variables
    metric: str
    save: Callable[[Path, Variables], Any]
    teacher: Callable[[], Metrics] | None = None
    control: Callable[[], tuple[Program, Iterable[Any]]] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    answers: Callable[[Variables], Sequence[Mapping[str, str]]] | None = None


class Distilled(NamedTuple):
    """What a recipe returns.

    Attributes:
        state: the program's, of the student that was written.
        history: one dict an evaluation, as `jaxkd.training.fit` returns them.
        folder: that was written.
        records: the numbers of the table.
    """

    state: Any
    history: History
    folder: Path
    records: list[Record]


@checked()
def training_folder(recipe: Recipe) -> Path:
    """Return where a recipe's run keeps what it goes on from."""
    to = Path(recipe.to)
    return to.with_name(f"{to.name}.training")


@checked()
def check_folders(kind: str, recipe: Recipe) -> None:
    """Refuse a folder to write that is there, and a stopped run of another recipe.

    Recipes call it first, before they read anything.

    Args:
        kind: of recipe, as its file says it.
        recipe: of the run.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the stopped run was of another recipe. It names what differs.
    """
    if on_first_process(Path(recipe.to).exists):
        raise FileExistsError(
            f"{recipe.to} exists: name a new folder by --to, so that nothing is lost"
        )
    folder = training_folder(recipe)
    said = folder / "recipe.yaml"
    if not on_first_process(said.is_file):
        return
    different = changes(read_yaml(said), {"recipe": kind, **plain(recipe)})
    if not different:
        return
    if any(folder.rglob("checkpoints/[0-9]*")):
        raise ValueError(
            f"{folder} holds a stopped run of another recipe: {'; '.join(different)}. "
            "Give the same to go on with it, name another folder by --to, or delete it"
        )
    if jax.process_index() == 0:  # Nothing was trained there.
        shutil.rmtree(folder)


@checked()
def train_once(
    kind: str,
    recipe: Recipe,
    name: str,
    program: Program,
    batches: Iterable[Any],
    steps: int,
    console: Console | None = None,
) -> Variables:
    """Train what a recipe needs before its student, such as a teacher.

    The same call goes on with a training that was stopped.

    Args:
        kind: of recipe, as its file says it.
        recipe: of the run; `check_folders` has passed it.
        name: of what is trained.
        program: trains it.
        batches: of the training.
        steps: likewise.
        console: where progress is shown; None shows nothing.
    """
    folder = training_folder(recipe)
    _claim(kind, recipe)
    shown = Console(quiet=True) if console is None else console
    every = recipe.checkpoint_every or max(1, steps // 10)
    place = folder / f"{name} training" / "checkpoints"
    with (
        Checkpoints(place, keep=1, config=plain(recipe)) as checkpoints,
        ProgressBar(shown) as progress,
    ):
        state, _ = fit(
            program,
            batches,
            key=jax.random.key(recipe.seed),
            steps=steps,
            mesh=make_mesh(recipe.mesh),
            checkpoints=checkpoints,
            checkpoint_every=every,
            progress=progress,
            name=name,
        )
    return deployed(state)


def _claim(kind: str, recipe: Recipe) -> None:
    """Say in a run's folder whose it is."""
    if jax.process_index() == 0:
        path = training_folder(recipe) / "recipe.yaml"
        write_atomically(path, to_yaml(kind, recipe))


@checked()
def carry_out(
    kind: str, recipe: Recipe, plan: Plan, console: Console | None = None
) -> Distilled:
    """Train a plan's student, compare it, and write its folder.

    The same call goes on with a run that was stopped, or whose folder could not be
    written.

    Args:
        kind: of recipe, as its file says it.
        recipe: of the run; `check_folders` has passed it.
        plan: what it has made ready.
        console: where progress and table are shown; None shows nothing.

    Raises:
        OSError: a checkpoint or the folder cannot be written, as on a full disk.
        ValueError: of the program, the data or the checkpoints, as `fit`.
    """
    folder = training_folder(recipe)
    _claim(kind, recipe)
    if console is not None:
        console.print(
            f"{plan.steps} steps; if it stops, the same command goes on from {folder}",
            soft_wrap=True,
        )
    shown = Console(quiet=True) if console is None else console
    with Clock(folder) as clock, ProgressBar(shown) as progress:
        run = Run(folder, progress)

        def row(name: str, measure: Callable[[], Metrics]) -> list[Record]:
            return run.part(name, lambda _: _row(name, recipe.seed, measure))

        found = [] if plan.teacher is None else row(TEACHER, plan.teacher)
        found += row(BEFORE, lambda: plan.evaluate(plan.before))
        state, history, chosen, seconds = _train(
            recipe, plan, folder, plan.program, plan.batches, progress
        )
        found += _course(AFTER, recipe, plan, history, chosen, seconds)
        if plan.control is not None:
            found += run.part(
                CONTROL, lambda place: _control(recipe, plan, place, progress)
            )
        answers = [] if plan.answers is None else plan.answers(deployed(state))
    made = Made(kind, recipe, plan.about, plan.metric, found, answers, clock.seconds)
    _write(recipe, plan, made, deployed(state))
    if console is not None and jax.process_index() == 0:
        print_rows(console, found)
        console.print(f"written: {recipe.to} (report.html, README.md)", soft_wrap=True)
    return Distilled(state, history, Path(recipe.to), found)


def _row(name: str, seed: int, measure: Callable[[], Metrics]) -> list[Record]:
    started = time.perf_counter()
    values = dict(measure())
    return records("", name, seed, values, time.perf_counter() - started)


def _train(
    recipe: Recipe,
    plan: Plan,
    folder: Path,
    program: Program,
    batches: Iterable[Any],
    progress: ProgressBar,
) -> tuple[Any, History, int, float]:
    """Return the state to keep, the evaluations, the kept one's step, and seconds."""
    every = recipe.evaluate_every or max(1, plan.steps // 10)
    mode = "max" if higher_is_better(plan.metric) else "min"
    writers: list[MetricWriter] = [JsonLines(folder / "metrics.jsonl")]
    with (
        Clock(folder / "clock") as clock,
        Checkpoints(
            folder / "checkpoints",
            keep=1,
            best=plan.metric,
            best_mode=mode,
            config=plain(recipe),
        ) as checkpoints,
    ):
        state, history = fit(
            program,
            batches,
            key=jax.random.key(recipe.seed),
            steps=plan.steps,
            mesh=make_mesh(recipe.mesh),
            evaluate=lambda state: plan.evaluate(deployed(state)),
            evaluate_every=every,
            checkpoints=checkpoints,
            checkpoint_every=recipe.checkpoint_every,
            log_every=min(50, every),
            writers=writers,
            progress=progress,
            name="training",
        )
        checkpoints.wait()
        last = int(history[-1]["step"])
        best = checkpoints.best if recipe.keep == "best" else None
        if best is None or best == last:
            return state, history, last, clock.seconds
        restored = checkpoints.restore(state, best)
        assert restored is not None, "there is a best checkpoint"
        return restored[1], history, best, clock.seconds


def _course(
    name: str,
    recipe: Recipe,
    plan: Plan,
    history: History,
    chosen: int,
    seconds: float,
) -> list[Record]:
    """Return a trained student's records: its numbers, and their course."""
    (kept,) = (entry for entry in history if entry["step"] == chosen)
    values = {
        metric: value
        for metric, value in kept.items()
        if metric != "step" and not metric.startswith("train_")
    }
    if plan.metric not in values:
        raise ValueError(unknown_name("metric", plan.metric, values))
    found = records("", name, recipe.seed, values, seconds)
    return [
        dataclasses.replace(
            record, curve=tuple(float(entry[record.metric]) for entry in history)
        )
        for record in found
    ]


def _control(
    recipe: Recipe, plan: Plan, folder: Path, progress: ProgressBar
) -> list[Record]:
    assert plan.control is not None
    program, batches = plan.control()
    _, history, chosen, seconds = _train(
        recipe, plan, folder, program, batches, progress
    )
    return _course(CONTROL, recipe, plan, history, chosen, seconds)


def _write(recipe: Recipe, plan: Plan, made: Made, variables: Variables) -> None:
    to = Path(recipe.to)
    if jax.process_index():
        plan.save(to, variables)  # The first process writes; reading takes all of them.
        return
    with replaced_folder(to) as partial:
        plan.save(partial, variables)
        write_pages(partial, made)
        shutil.copyfile(
            training_folder(recipe) / "metrics.jsonl", partial / "metrics.jsonl"
        )
        write_digests(partial)
