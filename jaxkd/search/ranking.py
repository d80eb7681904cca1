"""How well scores order architectures, and how several scores are made one."""

from collections.abc import Sequence

import numpy as np

from jaxkd.arguments import checked


@checked()
def rank_consistency(
    scores: Sequence[float | int] | np.ndarray,
    accuracies: Sequence[float | int] | np.ndarray,
) -> dict[str, float]:
    """Return the correlations of scores with accuracies, over architectures.

    Args:
        scores: one an architecture, higher is better.
        accuracies: after training.

    Returns:
        ``kendall`` (τ-b), ``spearman`` and ``pearson``, in [-1, 1]; NaN where all
        scores are alike.

    Raises:
        ValueError: the lengths differ, or are below 2.
    """
    from scipy import stats

    if len(scores) != len(accuracies) or len(scores) < 2:
        raise ValueError(
            f"scores holds {len(scores)} values and accuracies {len(accuracies)}: give "
            "one of each for at least 2 architectures"
        )
    scores, accuracies = (np.asarray(x, np.float64) for x in (scores, accuracies))
    if np.ptp(scores) == 0 or np.ptp(accuracies) == 0:
        return dict.fromkeys(("kendall", "spearman", "pearson"), float("nan"))
    correlations = {
        "kendall": stats.kendalltau,
        "spearman": stats.spearmanr,
        "pearson": stats.pearsonr,
    }
    return {
        name: float(correlation(scores, accuracies)[0])
        for name, correlation in correlations.items()
    }


def rank_sum(*scores: Sequence[float | int] | np.ndarray) -> np.ndarray:
    """Return each architecture's ranks by several scores, added.

    Scores of different scales weigh alike; ties share their mean rank.

    Args:
        *scores: each holds one value an architecture, higher is better.

    Raises:
        ValueError: no scores, or of different lengths.
    """
    from scipy.stats import rankdata

    lengths = {len(values) for values in scores}
    if len(lengths) != 1:
        raise ValueError(
            f"scores hold {sorted(lengths)} values: give at least one score, each with "
            "one value an architecture"
        )
    return np.sum([rankdata(values) for values in scores], axis=0)
