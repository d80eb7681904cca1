"""Is influence what it says? Logistic regressions fitted without one example each."""

from typing import Any

import numpy as np

from experiments.kdaif.settings import LEAVE_ONE_OUT, Config
from jaxkd import data, selection
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import records

PENALTY = 0.01


def left_out(
    config: Config, train: Any, validation: data.Source, seed: int
) -> list[Record]:
    """Return how the influence of examples goes with the loss of fits without them."""
    x, y = _flat(train)
    x_val, y_val = _flat(validation)
    start = np.zeros((train.classes, x.shape[1]))
    theta = _fit(x, y, start, np.ones(len(x)))
    before = _loss(theta, x_val, y_val)
    seen, held_out = (
        selection.Seen(
            b.argmax(1),
            np.float32(a @ theta.T)[None],
            np.float32(a[:, :-1])[None],
        )
        for a, b in ((x, y), (x_val, y_val))
    )
    scores = selection.last_layer_influence(seen, held_out, damping=PENALTY)
    # The extremes and some between: of most examples neither number differs from 0.
    order = np.argsort(np.asarray(scores))
    chosen = order[np.linspace(0, len(order) - 1, config.left_out).astype(int)]
    changes = []
    for i in chosen:
        after = _fit(x, y, theta, np.arange(len(x)) != i)
        changes.append(_loss(after, x_val, y_val) - before)
    expected = -np.asarray(scores)[chosen] / len(x)
    values = {
        "loo_correlation": float(np.corrcoef(expected, changes)[0, 1]),
        "loo_slope": float(np.polyfit(changes, expected, 1)[0]),
    }
    return records(LEAVE_ONE_OUT, "influence", seed, values, 0.0)


def _flat(source: data.Source) -> tuple[np.ndarray, np.ndarray]:
    """Return flat images with a 1, and one-hot labels, in float64."""
    images = source.arrays["image"].reshape(len(source), -1).astype(np.float64)
    ones = np.ones((len(source), 1))
    label = source.arrays["label"]
    return np.concatenate([images, ones], 1), np.eye(source.classes)[label]


def _probabilities(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    z = x @ theta.T
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _loss(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log((_probabilities(theta, x) * y).sum(1)).mean())


def _fit(
    x: np.ndarray, y: np.ndarray, theta: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the softmax regression, by Newton's steps, with a penalty on its squares.

    Weights of the examples are not renormalised: without one, the sum has one less.
    """
    n, classes, width = len(x), y.shape[1], x.shape[1]
    squares = (x[:, :, None] * x[:, None, :]).reshape(n, -1) * weights[:, None]
    for _ in range(20):
        p = _probabilities(theta, x)
        slope = ((p - y) * weights[:, None]).T @ x / n + PENALTY * theta
        if np.abs(slope).max() < 1e-9:
            break
        curvature = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None]
        hessian = curvature.reshape(n, -1).T @ squares / n
        hessian = hessian.reshape(classes, classes, width, width)
        hessian = hessian.transpose(0, 2, 1, 3).reshape(classes * width, -1)
        hessian += PENALTY * np.eye(len(hessian))
        theta = theta - np.linalg.solve(hessian, slope.ravel()).reshape(theta.shape)
    return theta
