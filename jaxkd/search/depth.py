"""Which layers of a network to keep at each depth, by dynamic programming."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxkd.arguments import checked, count, natural


class DepthSelection(NamedTuple):
    """The layers that are kept once 0, 1, 2, … are removed.

    Attributes:
        keep: row m is True for the layers that are kept when m are removed.
        values: the metric of each row; NaN for row 0, which was not measured.
        evaluations: how often the metric was computed.
    """

    keep: Bool[np.ndarray, "removed layers"]
    values: Float[np.ndarray, "removed"]
    evaluations: int


@checked(layers=count, max_removed=count, keep_last=natural)
def select_depth(
    metric: Callable[[np.ndarray], float],
    layers: int,
    max_removed: int,
    *,
    keep_last: int = 0,
    lower_is_better: bool = True,
) -> DepthSelection:
    """Choose the layers to remove by dynamic programming over the network's end.

    Of the last n candidates m are removed: either candidate N − n goes too, on top of
    the best m − 1 of the last n − 1, or the best m of the last n − 1 stay the choice.
    That takes Σ (N − m + 1) evaluations, m = 1 … M, for N candidates and M removals,
    and finds the optimum where the layers' effects add up.

    Fu et al. 2024 (AmoebaLLM), arXiv:2411.10606, as its code has it.

    Args:
        metric: ``keep -> value`` of the network with only the layers that are True in
            ``keep``, (layers,): a loss, a perplexity or an accuracy on a few examples.
        layers: of the network.
        max_removed: M.
        keep_last: layers at the end that are never removed.
        lower_is_better: whether the metric is a loss.

    Raises:
        ValueError: fewer than M + 1 layers may be removed, or a metric is NaN.
    """
    candidates = layers - keep_last
    if max_removed >= candidates:
        raise ValueError(
            f"max_removed must be below the {candidates} layers that may be removed "
            f"(layers {layers}, keep_last {keep_last}), got {max_removed}"
        )
    sign = 1 if lower_is_better else -1
    best = {0: (math.nan, np.ones(layers, bool))}
    evaluations = 0
    for position in reversed(range(candidates)):
        # From many removals to few, so that each builds on the shorter end's choice.
        for removed in range(min(max_removed, candidates - position), 0, -1):
            keep = best[removed - 1][1].copy()
            keep[position] = False
            value = float(metric(keep.copy()))
            evaluations += 1
            if math.isnan(value):
                raise ValueError(f"metric is NaN for keep {keep.astype(int).tolist()}")
            if removed not in best or sign * value < sign * best[removed][0]:
                best[removed] = value, keep
    values, keep = zip(*(best[removed] for removed in sorted(best)), strict=True)
    return DepthSelection(np.stack(keep), np.array(values), evaluations)


@checked(layers=count, kept=count)
def spread_layers(layers: int, kept: int) -> tuple[int, ...]:
    """Return the layers of a shallower network, evenly spread: ⌊i·layers/kept⌋.

    Xu et al. 2022 (AutoDistil), arXiv:2201.12507, as its code has it: 7 of 12 are
    0, 1, 3, 5, 6, 8 and 10.

    Args:
        layers: there are.
        kept: of them.

    Raises:
        ValueError: more are kept than there are.
    """
    if kept > layers:
        raise ValueError(f"kept must be at most layers ({layers}), got {kept}")
    return tuple(i * layers // kept for i in range(kept))
