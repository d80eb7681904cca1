"""Runs: arms are trained, tested, timed and kept, so that a run survives a stop.

An `Arm` is a row of a table, a `Task` what it is trained and tested on. `Run.train`
does all of that for one arm and some seeds, whatever the program: it owns checkpoints,
time, records and the exported students. What it has finished is never done again.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.digests import check_json, write_json
from jaxkd.files import check_plain
from jaxkd.interop import save_pretrained
from jaxkd.network import Network
from jaxkd.reporting.records import Record
from jaxkd.training import Checkpoints, fit, make_mesh
from jaxkd.training.progress import ProgressBar
from jaxkd.types import Program, Variables, deployed
from jaxkd.untrusted import json_file

History = Sequence[Mapping[str, int | float]]
"""One dict an evaluation, as `jaxkd.training.fit` returns them."""

Values = Mapping[str, float | Sequence[float]]
"""Metrics by name: a number, or its whole course over training, the last one last."""


def last_evaluation(history: History) -> Values:
    """Return what the last evaluation found; of ``nll`` its course over all of them."""
    found: dict[str, Any] = {
        name: value
        for name, value in history[-1].items()
        if name != "step" and not name.startswith("train_")
    }
    if "nll" in found:
        found["nll"] = [entry["nll"] for entry in history]
    return found


@dataclass(frozen=True)
class Task:
    """What the arms of one table are trained and tested on.

    Attributes:
        setting: the table's name; empty if the experiment has one.
        batches: ``seed ->`` training batches, or what else the loop takes for them.
        steps: of training; None until the batches end.
        evaluate: ``network -> (variables -> metrics)``, the test; None without one.
        evaluate_every: steps; None for the end only.
        checkpoint_every: steps; None for the end only.
        summary: evaluations ``->`` the metrics that are recorded.
        input_shape: of an example, for networks of images that are exported.
        seeds: at most so many; None for all that are asked for.
        loop: what trains; it is called as `jaxkd.training.fit` is.
    """

    setting: str
    batches: Callable[[int], Any]
    steps: int | None
    evaluate: Callable[[Network], Callable[[Any], Mapping[str, float]]] | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    summary: Callable[[History], Values] = last_evaluation
    input_shape: tuple[int, ...] | None = None
    seeds: int | None = None
    loop: Callable[..., tuple[Any, History]] = fit


_deployed = deployed  # An arm's own field has that name too.


def _nothing(state: Any, history: History) -> Values:
    return {}


@dataclass(frozen=True)
class Arm:
    """A row of a table: what is trained, and which network of it is tested.

    Attributes:
        name: of the row.
        program: trains it; None for a network that is only tested, with the variables
            that its ``init`` gives it, and only once.
        deployed: the network that is tested, and exported if it has a ``spec``.
        variables: ``state ->`` those of the network that is tested.
        measure: ``(last state, evaluations) ->`` further metrics; of an arm without a
            program the state is the network's variables.
        seconds: that were spent on it before, such as on a teacher's training.
    """

    name: str
    program: Program | None
    deployed: Network
    variables: Callable[[Any], Variables] = _deployed
    measure: Callable[[Any, History], Values] = _nothing
    seconds: float = 0.0


@dataclass(frozen=True)
class Run:
    """Where one run of an experiment keeps what it has done.

    Several processes (``jax.distributed``) work at the same part together.

    Attributes:
        folder: holds a folder for each part, with its checkpoints and records. It is
            one folder for all processes, on a disk that they share.
        progress: a bar to draw on, or None.
        mesh: of several processes, a name of ``jaxkd.training.MESHES``; one process
            takes one device.
    """

    folder: Path
    progress: ProgressBar | None = None
    mesh: str = "data"

    def train(self, arm: Arm, task: Task, seeds: Sequence[int]) -> list[Record]:
        """Return an arm's records, of a network a seed; compiled once for all.

        Args:
            arm: to train, or only to test.
            task: to train and test it on.
            seeds: of the weights and the order of the batches.
        """
        seeds = seeds[: 1 if arm.program is None else task.seeds]
        test = None if task.evaluate is None else task.evaluate(arm.deployed)
        name = _name(arm, task)

        def evaluate(variables: Variables) -> Mapping[str, float]:
            return {} if test is None else test(variables)

        def one(folder: Path, seed: int) -> list[Record]:
            with Clock(folder) as clock:
                if arm.program is None:
                    state = variables = arm.deployed.init(jax.random.key(seed))
                    history = [dict(evaluate(variables))]
                else:
                    state, history = self.fit(
                        arm.program,
                        task,
                        seed,
                        folder,
                        f"{name} seed {seed}",
                        lambda state: evaluate(arm.variables(state)),
                    )
                    variables = arm.variables(state)
                    _export(folder / "student", arm.deployed, variables, task)
                values = {**task.summary(history), **arm.measure(state, history)}
                seconds = arm.seconds + clock.seconds
            return records(task.setting, arm.name, seed, values, seconds)

        return [
            record
            for seed in seeds
            for record in self.part(
                f"{name}/seed{seed}", lambda folder, seed=seed: one(folder, seed)
            )
        ]

    def teacher(self, arm: Arm, task: Task, seed: int = 0) -> Arm:
        """Return a trained arm: its network with its variables, to learn from and test.

        It is trained once in a run, whatever the tables it is asked for in. Its folder
        is named after the task's setting and the arm.

        Args:
            arm: to train.
            task: to train it on; it is not tested.
            seed: of the weights and the order of the batches.
        """
        name = f"{_name(arm, task)}/seed{seed}"
        if arm.program is None:
            raise ValueError(f"arm {arm.name!r} has no program: it is trained already")
        # Its row may be a part of that name too, whose clock does not go on from here.
        folder = self.folder / name / "training"
        with Clock(folder) as clock:
            state, _ = self.fit(arm.program, task, seed, folder, name)
            network = arm.deployed.with_variables(arm.variables(state))
            seconds = clock.seconds
        return replace(arm, program=None, deployed=network, seconds=seconds)

    def fit(
        self,
        program: Program,
        task: Task,
        seed: int,
        folder: Path,
        name: str,
        evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    ) -> tuple[Any, History]:
        """Return a program's last state and evaluations; it goes on after a stop.

        Args:
            program: to train.
            task: to train it on.
            seed: of the weights and the order of the batches.
            folder: keeps the checkpoints.
            name: on the bar.
            evaluate: ``state -> metrics``.
        """
        with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            return task.loop(
                program,
                task.batches(seed),
                key=jax.random.key(seed),
                steps=task.steps,
                mesh=make_mesh(self.mesh) if jax.process_count() > 1 else None,
                evaluate=evaluate,
                evaluate_every=task.evaluate_every if evaluate else None,
                checkpoints=checkpoints,
                checkpoint_every=task.checkpoint_every,
                progress=self.progress,
                name=name,
            )

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
        found = compute(folder)
        if jax.process_index() == 0:
            rows = [dataclasses.asdict(record) for record in found]
            write_json(done, {"records": rows}, indent=None)
        return found


class Clock:
    """The time spent in a folder, over all the times that a run was stopped.

    Use as a context manager; the time until then is kept on leaving, also by an error.

    Args:
        folder: keeps the time; made if it is missing.
    """

    def __init__(self, folder: Path):
        self._file = folder / "seconds.txt"
        before = 0.0
        if self._file.is_file():
            before = _read_seconds(self._file)
        self._started = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self._started

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_index() == 0:
            write_json(self._file, {"seconds": round(self.seconds, 3)}, indent=None)


def _read_seconds(path: Path) -> float:
    try:
        found = json_file(path)
        # A number alone, as it was once.
        found = check_json(found)["seconds"] if isinstance(found, dict) else found
        if not 0 <= found < math.inf:
            raise ValueError(f"{found} is no time")
        return float(found)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete it, and the time of this part is "
            "counted from now"
        ) from None


def records(
    setting: str, method: str, seed: int, values: Values, seconds: float
) -> list[Record]:
    """Return a record a metric; a course is its curve, its last value the value."""
    found = []
    for metric, value in values.items():
        course = list(map(float, value if isinstance(value, Sequence) else [value]))
        curve = tuple(course) if len(course) > 1 else ()
        found.append(Record(method, seed, metric, course[-1], seconds, setting, curve))
    return found


def run_arms(
    arms: Callable[[Any, Run, int], Iterable[tuple[Arm, Task]]],
    config: Any,
    seeds: Sequence[int],
    run: Run,
    *,
    anew: bool = False,
) -> list[Record]:
    """Return the records of all arms.

    Args:
        arms: ``(config, run, seed) ->`` the rows with their tasks.
        config: of the preset.
        seeds: of the arms.
        run: keeps what is done.
        anew: whether the arms are made anew for every seed, because their teacher or
            their data depend on it; else those of the first seed serve all.
    """
    groups = [[seed] for seed in seeds] if anew else [seeds]
    return [
        record
        for group in groups
        for arm, task in arms(config, run, group[0])
        for record in run.train(arm, task, group)
    ]


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
        found = json_file(path)
        if isinstance(found, dict):  # not a list, as it was once
            found = check_json(found)["records"]
        return [_record(entry) for entry in found]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is half-written or corrupt ({error!r}): delete it, and `jaxkd "
            "resume` repeats this part"
        ) from None


def _record(entry: Any) -> Record:
    check_plain(entry, "a record")
    texts = [entry[name] for name in ("method", "metric", "setting")]
    numbers = [entry["value"], entry["wall_time"], *entry["curve"]]
    kinds = {*map(type, texts)}, {*map(type, numbers)}, type(entry["seed"])
    if kinds[0] != {str} or not kinds[1] <= {int, float} or kinds[2] is not int:
        raise ValueError(f"a record is {entry!r:.200}")
    return Record(**{**entry, "curve": tuple(entry["curve"])})


def _name(arm: Arm, task: Task) -> str:
    return f"{task.setting}/{arm.name}".strip("/")


def _export(folder: Path, network: Network, variables: Variables, task: Task) -> None:
    """Keep a network of the zoo for ``jaxkd export``; others cannot be rebuilt."""
    if network.spec is not None:
        save_pretrained(folder, network, variables, input_shape=task.input_shape)
