"""Whether a model is as often right as it says, and a temperature that makes it so."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxkd.arguments import checked, count, positive
from jaxkd.losses.basics import as_float
from jaxkd.losses.first import Space, recalibrate_top_k


@checked(bins=count)
def calibration_error(
    confidence: Float[Array, "examples"], correct: Bool[Array, "examples"], bins: int
) -> Float[Array, ""]:
    """Return the mean gap between confidence and accuracy over confidence bins.

    Guo et al. 2017, arXiv:1706.04599, Eq. 3: equal-width bins (lower, upper], each
    weighted by its share of the examples.

    Args:
        confidence: the probability of what was predicted.
        correct: whether it was right.
        bins: of (0, 1].
    """
    confidence = as_float(confidence)
    gap = confidence - correct
    which = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = jnp.zeros(bins, gap.dtype).at[which].add(gap)
    return jnp.abs(gaps).sum() / len(confidence)


@checked(step=positive, bins=count)
def search_temperature(
    log_probs: Float[Array, "examples k"],
    correct: Bool[Array, "examples"],
    grid: Sequence[float],
    *,
    space: Space = "log",
    step: float | None = None,
    bins: int = 10,
) -> tuple[float, float]:
    """Return the temperature with the smallest calibration error, and that error.

    "Trustworthy maximization" (Shum et al. 2024, arXiv:2408.12168, Section 4.3), which
    in ``probability`` space tries 0.1, 0.2, … 1 and then steps of 0.02 around the best.
    The examples must be held out: of those that it learnt, a model is sure and right,
    and no temperature is too sharp for them.

    Args:
        log_probs: a model's k best answers to each example, best first.
        correct: whether the best one is right.
        grid: temperatures to try.
        space: see `jaxkd.losses.recalibrate_top_k`.
        step: of a second grid, between the best one's neighbours; None for none.
        bins: of the calibration error.

    Returns:
        The temperature and its error; of equal ones, that which changes least.

    Raises:
        ValueError: no examples, no temperatures, or one that is not above 0.
    """
    if not len(correct) or not len(grid):
        raise ValueError(
            f"there are {len(correct)} examples and {len(grid)} temperatures: give at "
            "least one of each"
        )

    def error(temperature: float) -> tuple[float, float]:
        calibrated = recalibrate_top_k(jnp.asarray(log_probs), temperature, space)
        found = calibration_error(jnp.exp(calibrated[:, 0]), correct, bins)
        # Equal but for rounding counts as equal.
        return round(float(found), 6), abs(float(np.log(temperature)))

    ordered = sorted(grid)
    best = min(ordered, key=error)
    if step is not None:
        at = ordered.index(best)
        low, high = ordered[max(at - 1, 0)], ordered[min(at + 1, len(ordered) - 1)]
        count = round((high - low) / step)
        fine = [round(low + i * step, 9) for i in range(count + 1)]
        best = min([best, *fine], key=error)
    return best, error(best)[0]
