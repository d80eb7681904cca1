"""The theory's model: ridge regression on a part of the data with a teacher's fit."""

import numpy as np
from jaxtyping import Float

from jaxkd.arguments import checked, probability


@checked(alpha=probability)
def ridge_self_distill(
    x: Float[np.ndarray, "examples features"],
    y: Float[np.ndarray, "examples"],
    w_teacher: Float[np.ndarray, "features"] | None,
    lam: float,
    alpha: float,
) -> Float[np.ndarray, "features"]:
    """Return (XᵀX + λI)⁻¹Xᵀ[(1 − α)·y + α·X·w_t], in float64.

    Ben-Baruch et al. 2025, arXiv:2403.07854, Section 3: with the fit of more data as
    teacher, the error of the weights falls as that data grow. Without a teacher it is
    the plain ridge regression.

    Args:
        x: X, the examples that are kept.
        y: their targets.
        w_teacher: w_t, the teacher's weights; None for none, whatever α.
        lam: λ ≥ 0; with 0 there must be as many examples as features.
        alpha: α in [0, 1], the teacher's share of the targets.
    """
    x, target = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if w_teacher is not None:
        target = (1 - alpha) * target + alpha * x @ np.asarray(w_teacher, np.float64)
    return np.linalg.solve(x.T @ x + lam * np.eye(x.shape[1]), x.T @ target)
