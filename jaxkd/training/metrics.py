"""Where training's metrics are written: JSON lines, CSV, TensorBoard.

A run that resumes drops what was written beyond the step it resumes from, so that the
file is that of a run which nothing interrupted.
"""

import csv
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxkd.arguments import checked
from jaxkd.untrusted import LARGEST_JSON, blaming, json_from


@runtime_checkable
class MetricWriter(Protocol):
    """What `fit` writes metrics to."""

    def start(self, step: int) -> None:
        """Begin or go on after a step; drop what is there of later steps."""
        ...

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        ...


@checked()
class JsonLines:
    """One JSON object a line: ``{"step": 50, "loss": 0.7, …}``.

    Args:
        path: of the file; its folder is made if it is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def start(self, step: int) -> None:
        """Keep the lines up to a step.

        Raises:
            ValueError: a line before the last is not JSON. It names file and line.
        """

        def wanted(line: str) -> bool:
            return json_from(line, "it", LARGEST_JSON)["step"] <= step

        _keep(self.path, wanted)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


@checked()
class Csv:
    """One value a row, with the columns ``step,metric,value``.

    Args:
        path: of the file; its folder is made if it is missing.
    """

    header = "step,metric,value\n"

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def start(self, step: int) -> None:
        """Keep the rows up to a step.

        Raises:
            ValueError: a row before the last is not such a row. It names file and line.
        """

        def wanted(line: str) -> bool:
            if line == self.header:
                return True
            at, _, value = next(csv.reader([line]))
            float(value)
            return int(at) <= step

        _keep(self.path, wanted)
        if not self.path.stat().st_size:
            self.path.write_text(self.header)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row a metric."""
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows(
            (step, name, value) for name, value in metrics.items()
        )
        with self.path.open("a") as file:
            file.write(rows.getvalue())


@checked()
class TensorBoard:
    """TensorBoard event files, by tensorboardX.

    It comes with ``pip install jaxkd-distill[tensorboard]``.

    Args:
        folder: of the event files.

    Raises:
        ImportError: tensorboardX is not installed. It says how to install it.
    """

    def __init__(self, folder: str | Path):
        try:
            import tensorboardX
        except ImportError:
            raise ImportError(
                "TensorBoard files need tensorboardX: "
                "pip install 'jaxkd-distill[tensorboard]'"
            ) from None
        self.folder = Path(folder)
        self._library: Any = tensorboardX
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Begin a new event file, which tells TensorBoard to drop later steps."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter: its thread loses what it has not written when a run ends.
        files = self._library.event_file_writer
        self._writer = files.EventsWriter(str(self.folder / "events"))
        events = self._library.proto.event_pb2
        start = events.SessionLog(status=events.SessionLog.START)
        self._add(step + 1, session_log=start)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a scalar a metric."""
        for name, value in metrics.items():
            self._add(step, summary=self._library.summary.scalar(name, value))
        self._writer.flush()

    def _add(self, step: int, **content: Any) -> None:
        event = self._library.proto.event_pb2.Event
        self._writer.write_event(event(step=step, wall_time=time.time(), **content))


def _keep(path: Path, wanted: Callable[[str], bool]) -> None:
    """Keep a file's wanted lines; the last may be half-written, and is then dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with blaming(str(path)):
        text = path.read_bytes().decode() if path.exists() else ""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if wanted(line):
                kept.append(line)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(
                f"{path}, line {number} cannot be read ({error!r}): "
                f"{line.strip()!r:.80}. Move the file away, or write to another"
            ) from None
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(kept))
    partial.replace(path)
