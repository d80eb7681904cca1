"""A progress bar for training: steps a second, time left, and the loss."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jaxkd.arguments import checked


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return steps a second."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} steps/s", style="cyan")


@checked()
class ProgressBar:
    """A bar on the terminal; nothing is drawn where the output is no terminal.

    Use as a context manager, and pass it to `fit`, which calls `start` and `update`.

    Args:
        console: where to draw; None for the standard output.
    """

    def __init__(self, console: Console | None = None):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            transient=True,
        )
        self._task = None

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, name: str, steps: int | None, done: int = 0) -> None:
        """Begin a run, in place of the one before."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=steps, completed=done, loss="")

    def update(self, step: int, loss: float) -> None:
        """Show the steps done and the latest loss."""
        if self._task is not None:
            self._progress.update(self._task, completed=step, loss=f"loss {loss:.4g}")
