"""What an experiment returns: one record a method, seed and metric."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Record:
    """One number that an experiment measured.

    Attributes:
        method: the row of the table, such as ``"kd"``.
        seed: of the run.
        metric: such as ``"last_accuracy"`` or ``"best_accuracy"``; fractions, not
            percent.
        value: the measurement.
        wall_time: seconds that the run of this method and seed took.
        setting: the table it belongs to, such as the pair of networks.
        curve: the metric over training, one value an evaluation; may be empty.
    """

    method: str
    seed: int
    metric: str
    value: float
    wall_time: float
    setting: str = ""
    curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Mean and standard error of a metric over seeds.

    Attributes:
        mean: over seeds.
        error: standard error (deviation with n − 1, over √n); NaN for one seed.
        seeds: how many.
    """

    mean: float
    error: float
    seeds: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the confidence interval of the mean, by Student's t.

        Args:
            level: the share of such intervals that hold the true mean, in (0, 1).

        Raises:
            ValueError: a level out of range.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level}")
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, self.seeds - 1)) * self.error
        return self.mean - half, self.mean + half


def select(
    records: Iterable[Record], method: str, metric: str, setting: str = ""
) -> list[Record]:
    """Return a method's records of a metric, by seed."""
    found = [
        r
        for r in records
        if (r.method, r.metric, r.setting) == (method, metric, setting)
    ]
    return sorted(found, key=lambda r: r.seed)


def summarize(values: Sequence[float]) -> Summary:
    """Return mean and standard error of one value a seed.

    Raises:
        ValueError: no values.
    """
    if len(values) == 0:
        raise ValueError("values is empty: there is nothing to summarise")
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Summary(float(np.mean(values)), error, n)


def settings(records: Iterable[Record]) -> list[str]:
    """Return the settings, in order of first appearance."""
    return list(dict.fromkeys(r.setting for r in records))


def methods(records: Iterable[Record], setting: str = "") -> list[str]:
    """Return a setting's methods, in order of first appearance."""
    return list(dict.fromkeys(r.method for r in records if r.setting == setting))
