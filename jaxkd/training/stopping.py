"""When to stop a run before its last step, from its evaluations alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from jaxkd.arguments import checked, count
from jaxkd.checks import unknown_name

History = Sequence[Mapping[str, int | float]]


@checked(evaluations=count)
def patience(
    metric: str, evaluations: int, mode: Literal["max", "min"] = "max"
) -> Callable[[History], bool]:
    """Return a `fit`'s ``stop``: no better value in so many evaluations.

    Args:
        metric: of the evaluations, such as ``accuracy`` or ``train_loss``.
        evaluations: since the best one; of equal ones, the first is the best, and NaN
            never is.
        mode: which end of the metric is best.

    Raises:
        ValueError: less than one evaluation, another mode; from the function returned,
            a metric that the evaluations lack.
    """

    def stop(history: History) -> bool:
        if metric not in history[-1]:
            raise ValueError(unknown_name("metric", metric, history[-1]))
        worst = -math.inf if mode == "max" else math.inf
        # argmax would take NaN for the best.
        values = [worst if math.isnan(x[metric]) else x[metric] for x in history]
        best = int(np.argmax(values) if mode == "max" else np.argmin(values))
        return len(values) - 1 - best >= evaluations

    return stop
