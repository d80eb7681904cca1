"""Training on a part of the data with a teacher of all of it: the loss and its α."""

from collections.abc import Sequence

import numpy as np

from jaxkd.arguments import checked, positive, positive_share, probability
from jaxkd.methods import combine, cross_entropy, kd
from jaxkd.types import Method


@checked(alpha=probability, temperature=positive)
def pruned_kd(alpha: float, temperature: float = 4.0) -> Method:
    """Return (1 − α)·CE(y, z_s) + α·T²·KL(teacher ‖ student) at temperature T.

    Ben-Baruch et al. 2025, arXiv:2403.07854: on a subset of the data, with a teacher
    that was trained on all of it.

    Args:
        alpha: α in [0, 1], the teacher's share; see `alpha_for_fraction`.
        temperature: T > 0.
    """
    return combine((1 - alpha, cross_entropy()), (alpha, kd(temperature)))


@checked(fraction=positive_share)
def alpha_for_fraction(
    fraction: float, points: Sequence[tuple[float, float]] = ((0.1, 1.0), (1.0, 0.5))
) -> float:
    """Return the teacher's share α for a kept fraction of the data.

    The less is kept, the more the teacher is worth: linear in log f between the points,
    constant beyond them. The paper tunes α for each fraction; the points are ours.

    Args:
        fraction: f in (0, 1], that is kept.
        points: ``(fraction, alpha)``, the fractions rising.

    Raises:
        ValueError: no points, fractions that do not rise, or numbers out of range.
    """
    given = np.asarray(points, float).reshape(-1, 2)
    at, alphas = given.T
    rising = len(at) and at[0] > 0 and at[-1] <= 1 and (np.diff(at) > 0).all()
    if not rising or (alphas < 0).any() or (alphas > 1).any():
        raise ValueError(
            "points must be (fraction, alpha) pairs, the fractions rising in (0, 1] "
            f"and alpha in [0, 1], got {points}"
        )
    return float(np.interp(np.log(fraction), np.log(at), alphas))
