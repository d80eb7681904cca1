"""Draw the sine's fits and how each direction shrinks, step by step.

python -m experiments.self_distillation_theory.picture
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.self_distillation_theory.kernel_runs import SINE
from jaxkd.papers.self_distillation_theory import (
    krr_self_distill,
    rbf_kernel,
    self_distill_limit,
    spectral_shrinkage,
)

STEPS = (1, 2, 6, 30)
LAM, GAMMA = 0.2, 80.0


def draw(path: Path) -> None:
    """Draw two rows, α = 0 and α = 0.35: fits on the left, shrinkage on the right."""
    x, queries = np.linspace(0, 1, 11)[:, None], np.linspace(0, 1, 201)[:, None]
    gram, kernel = rbf_kernel(x, x, GAMMA), rbf_kernel(queries, x, GAMMA)
    eigenvalues = np.linalg.eigvalsh(gram)[::-1]
    figure = Figure((9, 6), layout="constrained")
    for row, alpha in zip(figure.subplots(2, 2), (0.0, 0.35), strict=True):
        fits = krr_self_distill(gram, kernel, SINE[:, None], LAM, alpha, STEPS[-1])
        limit = self_distill_limit(gram, kernel, SINE[:, None], LAM, alpha).query
        row[0].plot(queries, np.sin(2 * np.pi * queries), "k:", label="truth")
        row[0].plot(x, SINE, "k.", label="labels")
        for i, step in enumerate(STEPS):
            color = f"C{i}"
            row[0].plot(queries, fits.query[step - 1], color, label=f"step {step}")
            shrunk = spectral_shrinkage(eigenvalues, LAM, alpha, step)
            row[1].plot(range(1, 12), shrunk, f"{color}o-", label=f"step {step}")
        row[0].plot(queries, limit, "k--", label="limit")
        row[1].plot(
            range(1, 12), alpha * eigenvalues / (alpha * eigenvalues + LAM), "k--"
        )
        row[0].set(title=f"fits, α = {alpha:g}", xlabel="x")
        row[1].set(
            title=f"share that is left of each direction, α = {alpha:g}",
            xlabel="eigenvector of the kernel",
            ylim=(-0.03, 1.0),
        )
        row[0].legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).parent / "results" / "small" / "shrinkage.png")
