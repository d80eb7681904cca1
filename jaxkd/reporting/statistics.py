"""The statistics that judge claims: paired Student's t, one-sided, and Holm's steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxkd.arguments import checked, finite, own_check, probability
from jaxkd.checks import unknown_name

LEVEL = 0.05
"""Chance of a false verdict in one direction, where there is nothing to find."""

KINDS = ("superiority", "non-inferiority", "equivalence")


@dataclass(frozen=True)
class PairedTest:
    """What paired differences say of a claim about their mean.

    Attributes:
        mean: of the differences.
        lower: the mean is above this, one-sided at 1 − `LEVEL`.
        upper: the mean is below this, one-sided at 1 − `LEVEL`.
        p_holds: p-value against the claim's opposite; small where the claim holds.
        p_fails: p-value against the claim; small where it fails.
    """

    mean: float
    lower: float
    upper: float
    p_holds: float
    p_fails: float


def check_margin(margin: float, kind: str) -> None:
    """Raise an error unless a margin fits the kind of a contrast.

    Raises:
        ValueError: an unknown kind, a negative or infinite margin, or none where one is
            needed.
    """
    if kind not in KINDS:
        raise ValueError(unknown_name("kind of contrast", kind, KINDS))
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and not negative, got {margin}")
    if kind != "superiority" and margin == 0:
        raise ValueError(
            f"margin is 0, but {kind} needs one above 0: name the smallest difference "
            "that would matter, in the metric's unit"
        )


@checked(differences=finite, margin=own_check, kind=own_check)
def paired_test(
    differences: Sequence[float], margin: float = 0.0, kind: str = "superiority"
) -> PairedTest:
    """Test the mean of paired differences d by Student's t with n − 1 degrees.

    ===============  =========================  ==============================
    kind             it holds if                it fails if
    ===============  =========================  ==============================
    superiority      mean d > margin            mean d < margin
    non-inferiority  mean d > −margin           mean d < −margin
    equivalence      −margin < mean d < margin  mean d > margin or < −margin
    ===============  =========================  ==============================

    Equivalence holds by two one-sided tests (Schuirmann 1987). Where all differences
    are the same, the mean decides alone.

    Args:
        differences: one a pair, at least 2; positive where the first is better.
        margin: in the differences' unit.
        kind: of the claim.

    Raises:
        ValueError: fewer than 2 differences, one that is not finite, or a margin that
            does not fit the kind.
    """
    from scipy.special import stdtrit

    check_margin(margin, kind)
    n = len(differences)
    if n < 2:
        raise ValueError(f"a paired test needs at least 2 differences, got {n}")
    mean = math.fsum(differences) / n
    # Equal differences have no spread, whatever the rounding of their mean.
    varies = min(differences) < max(differences)
    square = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    error = math.sqrt(square / n) if varies else 0.0
    mean = mean if varies else differences[0]

    above = {x: _p_above(mean - x, error, n) for x in (margin, -margin)}
    below = {x: _p_above(x - mean, error, n) for x in (margin, -margin)}
    if kind == "equivalence":
        p_holds = max(above[-margin], below[margin])
        p_fails = min(above[margin], below[-margin])
    else:
        threshold = margin if kind == "superiority" else -margin
        p_holds, p_fails = above[threshold], below[threshold]
    half = float(stdtrit(n - 1, 1 - LEVEL)) * error
    return PairedTest(mean, mean - half, mean + half, p_holds, p_fails)


def _p_above(gap: float, error: float, n: int) -> float:
    """Return the chance of a mean that far above a threshold, if it were on it."""
    from scipy.special import stdtr

    if error == 0.0:
        return 0.5 if gap == 0.0 else float(gap < 0)
    return float(stdtr(n - 1, -gap / error))


@checked(p_values=probability)
def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method.

    The i-th smallest of n, from 0, is multiplied by n − i; none falls below a smaller
    one's, and none is above 1. Rejecting those below a level keeps the chance of any
    false rejection below that level, whatever their dependence (Holm 1979).

    Args:
        p_values: of one family of tests.
    """
    n, largest = len(p_values), 0.0
    corrected = [0.0] * n
    for rank, i in enumerate(sorted(range(n), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (n - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
