"""Training on a mixture of domains whose weights change after every interval."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import PRNGKeyArray

from jaxkd.data.mixture import Weights, mixture_batches
from jaxkd.data.sources import Examples
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.loop import fit
from jaxkd.types import Program

History = Sequence[Mapping[str, int | float]]


def fit_intervals(
    program: Program,
    sources: Mapping[str, Examples],
    batch_size: int,
    *,
    weights: Callable[[History], Weights | None],
    interval: int,
    intervals: int,
    evaluate: Callable[[Any], Mapping[str, float]],
    checkpoints: Checkpoints,
    key: PRNGKeyArray,
    seed: int = 0,
    **settings: Any,
) -> tuple[Any, list[dict[str, int | float]]]:
    """Train a program interval by interval, and return its last state and evaluations.

    Each interval is a `fit` of its own, which goes on from the checkpoint of the one
    before: state, examples used of each source, and evaluations, from which alone the
    weights follow. So a run that was stopped anywhere goes on as if it had not been,
    and no batch is drawn before the weights are known that it is drawn by.

    Args:
        program: what to train.
        sources: as of `jaxkd.data.mixture_batches`.
        batch_size: likewise.
        weights: evaluations after each interval so far ``->`` the weights of the
            sources in the next, or None for their sizes.
        interval: steps of each.
        intervals: how many.
        evaluate: ``state -> metrics``, after each interval.
        checkpoints: where they are saved; not optional here.
        key: of the run, as of `fit`.
        seed: of the examples' order.
        **settings: others of `fit`.

    Raises:
        ValueError: no steps or intervals, or as `fit` and `mixture_batches`.
    """
    if interval < 1 or intervals < 1:
        raise ValueError(
            f"interval and intervals must be at least 1, got {interval} and {intervals}"
        )
    state, done = None, []
    # After a stop the first call finds all that was done before.
    while len(done) < intervals:
        batches = mixture_batches(sources, batch_size, weights=weights(done), seed=seed)
        state, history = fit(
            program,
            batches,
            key=key,
            steps=(len(done) + 1) * interval,
            evaluate=evaluate,
            checkpoints=checkpoints,
            **settings,
        )
        # A stop within an interval leaves an evaluation of no interval's end.
        done = [entry for entry in history if entry["step"] % interval == 0]
    return state, done
