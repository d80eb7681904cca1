"""Training on a mixture of domains whose weights change after every interval."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import PRNGKeyArray

from jaxkd.arguments import checked
from jaxkd.data.mixture import Weights
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.loop import fit
from jaxkd.types import Program

History = Sequence[Mapping[str, int | float]]


@checked()
def fit_intervals(
    program: Program,
    batches: Callable[..., Iterable[Any]],
    *,
    weights: Callable[[History], Weights | None],
    steps: int,
    evaluate_every: int,
    evaluate: Callable[[Any], Mapping[str, float]],
    checkpoints: Checkpoints,
    key: PRNGKeyArray,
    **settings: Any,
) -> tuple[Any, list[dict[str, int | float]]]:
    """Train a program interval by interval, and return its last state and evaluations.

    Each interval is a `fit` of its own, which goes on from the checkpoint of the one
    before: state, examples used of each source, and evaluations, from which alone the
    weights follow. So a run that was stopped anywhere goes on as if it had not been,
    and no batch is drawn before the weights are known that it is drawn by.

    Args:
        program: what to train.
        batches: ``weights=… ->`` the batches of a mixture, whose place must not depend
            on the weights: `jaxkd.data.mixture_batches` with all else given.
        weights: evaluations after each interval so far ``->`` the weights of the
            sources in the next, or None for their sizes.
        steps: of all intervals.
        evaluate_every: steps of an interval.
        evaluate: ``state -> metrics``, after each interval.
        checkpoints: where they are saved; not optional here.
        key: of the run, as of `fit`.
        **settings: others of `fit`; its ``stop`` ends the whole run.

    Raises:
        ValueError: the steps are no whole number of intervals, or as `fit` and
            ``batches``.
    """
    if min(steps, evaluate_every) < 1 or steps % evaluate_every:
        raise ValueError(
            f"steps must be one or more intervals of evaluate_every, got {steps} and "
            f"{evaluate_every}"
        )
    state, done, before = None, [], -1
    # After an interruption the first call finds all that was done before; a call that
    # finds nothing to do was stopped.
    while before < len(done) < steps // evaluate_every:
        before = len(done)
        state, history = fit(
            program,
            batches(weights=weights(done)),
            key=key,
            steps=(len(done) + 1) * evaluate_every,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            checkpoints=checkpoints,
            **settings,
        )
        # An end within an interval leaves an evaluation of no interval's end.
        done = [entry for entry in history if entry["step"] % evaluate_every == 0]
    return state, done
