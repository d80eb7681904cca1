"""Scaling laws: the loss that a budget of tokens buys, fitted to some budgets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxkd.arguments import checked

Numbers = Sequence[float] | Float[np.ndarray, "..."]


@checked()
@dataclass(frozen=True)
class ScalingLaw:
    """loss(D) = floor + scale·D^(−exponent), for D tokens.

    Hoffmann et al. 2022, arXiv:2203.15556, Eq. 2, for one size of model.

    Attributes:
        floor: the loss that no number of tokens goes below.
        scale: what is above it at one token.
        exponent: how fast that falls.
    """

    floor: float
    scale: float
    exponent: float

    def __call__(self, tokens: Numbers) -> Float[np.ndarray, "..."]:
        """Return the loss at each budget."""
        return self.floor + self.scale * np.asarray(tokens, float) ** -self.exponent

    def relative_error(self, tokens: Numbers, losses: Numbers) -> float:
        """Return the mean of ``|predicted − measured| / measured``.

        Args:
            tokens: budgets that the law was not fitted to.
            losses: measured there.
        """
        measured = np.asarray(losses, float)
        return float(np.mean(np.abs(self(tokens) - measured) / measured))


@checked()
def fit_scaling_law(tokens: Numbers, losses: Numbers) -> ScalingLaw:
    """Return the law whose logarithm is closest to the losses', in least squares.

    Judge it by `ScalingLaw.relative_error` on a budget that was left out: three numbers
    fit four well whatever they are.

    Args:
        tokens: budgets, at least 4 different ones.
        losses: measured at each.

    Raises:
        ValueError: fewer budgets, other shapes, or numbers that are not above 0.
    """
    from scipy.optimize import least_squares

    budget, loss = np.asarray(tokens, float), np.asarray(losses, float)
    if budget.ndim != 1 or budget.shape != loss.shape:
        raise ValueError(
            f"tokens has shape {budget.shape} and losses {loss.shape}: give one loss "
            "a budget"
        )
    if len(np.unique(budget)) < 4:
        raise ValueError(
            f"tokens holds {len(np.unique(budget))} different budgets: three numbers "
            "are fitted, so measure at least 4"
        )
    if not (np.all(budget > 0) and np.all(loss > 0)):
        raise ValueError("tokens and losses must be above 0 to be fitted in logarithms")
    # Budgets relative to their geometric mean, so that the numbers are of one size.
    centre = np.exp(np.log(budget).mean())
    logs, relative = np.log(loss), np.log(budget / centre)

    def residuals(law: Float[np.ndarray, "3"]) -> Float[np.ndarray, "budgets"]:
        floor, log_scale, exponent = law
        return np.log(floor + np.exp(log_scale - exponent * relative)) - logs

    lowest, spread = loss.min(), max(np.ptp(loss), 1e-6 * loss.max())
    fits = [
        least_squares(
            residuals,
            [share * lowest, np.log(spread + (1 - share) * lowest), exponent],
            bounds=([0, -np.inf, 0], [lowest, np.inf, np.inf]),
            x_scale=[lowest, 1, 0.1],
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
        )
        # The sum of squares has several valleys.
        for share in (0.1, 0.5, 0.9, 0.99)
        for exponent in (0.1, 0.5, 1.0)
    ]
    floor, log_scale, exponent = min(fits, key=lambda fit: fit.cost).x
    return ScalingLaw(
        float(floor), float(np.exp(log_scale) * centre**exponent), float(exponent)
    )
