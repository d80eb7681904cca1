"""The exact part: kernel ridge regression on a sine and on digits with wrong labels."""

from dataclasses import dataclass

import numpy as np

from experiments.self_distillation_theory.splits import Split
from jaxkd.papers.self_distillation_theory import (
    greedy_optimal_weights,
    krr_self_distill,
    rbf_kernel,
    self_distill_closed_form,
    self_distill_limit,
    spectral_shrinkage,
)
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import records

# The authors' eleven points of a noisy sine.
SINE = np.array(
    [
        *(0.38476636465198066, 1.2333967683416893, 1.33232242218057),
        *(0.6920159488889518, -0.29756145531871736, -0.24189291901377769),
        *(-0.7964485769175675, -0.9616480167034174, -0.49672509496909934),
        *(-0.3469066003991437, 0.5589512650600734),
    ]
)
SINE_ALPHAS = (0.0, 0.25, 0.35)
SINE_STEPS = 6
LONG = 200


@dataclass(frozen=True)
class KernelConfig:
    """Digits by kernel ridge regression.

    Attributes:
        ridges: λ, a table each; none for no kernel regression at all.
        gamma: of the RBF kernel, for pixels in [0, 1].
        steps: of self-distillation; α = 0 and ``alpha`` also take 200.
        alpha: a fixed weight of the labels.
    """

    ridges: tuple[float, ...] = (0.01, 0.1, 1.0)
    gamma: float = 0.05
    steps: int = 10
    alpha: float = 0.35


def sine() -> list[Record]:
    """Return the mean squared distance from the sine, a table for each α."""
    x, queries = np.linspace(0, 1, 11)[:, None], np.linspace(0, 1, 101)[:, None]
    gram, kernel, y = (
        rbf_kernel(x, x, 80.0),
        rbf_kernel(queries, x, 80.0),
        SINE[:, None],
    )
    truth = np.sin(2 * np.pi * queries)
    eigenvalues = np.linalg.eigvalsh(gram)[::-1]
    found = []
    for alpha in SINE_ALPHAS:
        setting = f"sine, α = {alpha:g}"
        fits = krr_self_distill(gram, kernel, y, 0.2, alpha, SINE_STEPS)
        limit = self_distill_limit(gram, kernel, y, 0.2, alpha)
        named = {f"step {t + 1}": fit for t, fit in enumerate(fits.query)}
        shrunk = [
            spectral_shrinkage(eigenvalues, 0.2, alpha, t + 1)
            for t in range(SINE_STEPS)
        ]
        for t, (name, fit) in enumerate({**named, "limit": limit.query}.items()):
            values = {"mse": float(np.square(fit - truth).mean())}
            if t < SINE_STEPS:
                direct = self_distill_closed_form(gram, kernel, y, 0.2, alpha, t + 1)
                values["closed_form_error"] = float(abs(direct.query - fit).max())
            if 0 < t < SINE_STEPS:
                before, after = (b[:-1] / b[1:] for b in shrunk[t - 1 : t + 1])
                values["ratio_growth"] = float((after / before).min())
            found += records(setting, name, 0, values, 0.0)
    return found


def digits(config: KernelConfig, lam: float, split: Split, seed: int) -> list[Record]:
    """Return errors on one division of the digits, a row for each way to weigh."""
    (x, y), (x_val, y_val), (x_test, y_test) = split.regression()
    gram = rbf_kernel(x, x, config.gamma)
    k_val, k_test = (rbf_kernel(q, x, config.gamma) for q in (x_val, x_test))
    kernel, size = np.concatenate([k_val, k_test]), len(y_val)
    steps = config.steps
    greedy, clipped = (
        greedy_optimal_weights(gram, k_val, y, y_val, lam, steps, clip=clip)[0]
        for clip in (False, True)
    )
    rows = {
        "first_fit": (1.0, 1),
        "alpha_0": (0.0, steps),
        "alpha_0_long": (0.0, LONG),
        "alpha_fixed": (config.alpha, steps),
        "alpha_fixed_long": (config.alpha, LONG),
        "alpha_star": (greedy, steps),
        "alpha_star_clipped": (clipped, steps),
    }
    limit = self_distill_limit(gram, kernel, y, lam, config.alpha).query[None]
    fits = {
        name: krr_self_distill(gram, kernel, y, lam, alphas, t).query
        for name, (alphas, t) in rows.items()
    }
    found = []
    for name, query in {**fits, "alpha_fixed_limit": limit}.items():
        errors = np.square(query[:, size:] - y_test).mean((1, 2))
        values = {
            "mse": errors.tolist(),
            "validation_mse": float(np.square(query[-1, :size] - y_val).mean()),
            "test_accuracy": float(
                (query[-1, size:].argmax(-1) == y_test.argmax(-1)).mean()
            ),
        }
        if name == "alpha_star":
            values["grid_excess"] = grid_excess(gram, k_val, y, y_val, lam, greedy)
        if name == "alpha_0_long":
            values["best_step"] = float(errors.argmin() + 1)
        found += records(f"digits, λ = {lam:g}", name, seed, values, 0.0)
    return found


def grid_excess(
    gram: np.ndarray,
    k_val: np.ndarray,
    y: np.ndarray,
    y_val: np.ndarray,
    lam: float,
    greedy: np.ndarray,
) -> float:
    """Return by how much the best weights' error exceeds a grid's, at the worst step.

    At every step each α of 0, 0.05 … 1 takes the greedy one's place; the fit is a line
    in it, through those of 0 and 1.
    """
    excess = []
    for step in range(1, len(greedy)):
        pure, plain = (
            krr_self_distill(
                gram, k_val, y, lam, [*greedy[:step], alpha], step + 1
            ).query[-1]
            for alpha in (0.0, 1.0)
        )
        *grid, best = (
            np.square(alpha * plain + (1 - alpha) * pure - y_val).mean()
            for alpha in (*np.linspace(0, 1, 21), greedy[step])
        )
        excess.append(float(best - min(grid)))
    return max(excess)
