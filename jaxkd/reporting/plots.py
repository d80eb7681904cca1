"""Plots of methods as PNG files: final numbers side by side, and curves over training.

The only module of the library that imports matplotlib. Figures are drawn without
pyplot, so nothing global is touched and any thread may draw.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxkd.reporting.metrics import higher_is_better
from jaxkd.reporting.records import Record, Summary, methods, settings
from jaxkd.reporting.tables import (
    TEACHER,
    comparison,
    format_summary,
    metric_name,
)

BASELINE = "cross_entropy"
"""The method that the others are drawn against: training on labels alone."""

HIGHLIGHTED = 8
"""Most curves in colour in one panel."""

# Okabe & Ito's palette, told apart with every common colour blindness; black last,
# since it is the baseline's.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
BETTER, WORSE, NEUTRAL, BLACK = PALETTE[0], PALETTE[1], "#8A8F98", "#1F2328"
LABELS = {
    "last_accuracy": "test accuracy after the last epoch (%)",
    "best_accuracy": "test accuracy of the best epoch (%)",
    "accuracy": "test accuracy (%)",
    "nll": "negative log-likelihood (nats)",
    "ece": "expected calibration error (%)",
    "agreement": "agreement with the teacher (%)",
}
WIDTH = 8.0  # inches
SMALL, MEDIUM, LARGE = 9, 10, 12  # points
DPI = 160


def plot_comparison(
    records: Sequence[Record], path: str | Path, metric: str = "last_accuracy"
) -> Path:
    """Draw each method's mean ± standard error, sorted, one panel a setting.

    The baseline ``cross_entropy`` is a line; a method is coloured where it is over two
    combined standard errors away from it.

    Args:
        records: of one experiment.
        path: the PNG file to write.
        metric: a record's metric.

    Returns:
        The path.

    Raises:
        ValueError: no record has the metric.
    """
    rows = comparison(records, [metric])
    if not rows:
        raise ValueError(_nothing(records, f"no record of {metric!r} to draw"))
    names = list(dict.fromkeys(row.setting for row in rows))
    panels = [
        {row.method: row.summaries[metric] for row in rows if row.setting == name}
        for name in names
    ]
    # One row has the same height in every panel; 2.4 rows for axis and title.
    heights = [len(panel) + 0.6 for panel in panels]
    figure, axes = _figure(0.25 * (sum(heights) + 2.4 * len(panels)), heights)
    for ax, name, panel in zip(axes, names, panels, strict=True):
        _dots(ax, name, panel, metric)
    label = f"{LABELS.get(metric, metric)}, mean ± standard error over seeds"
    if any(BASELINE in panel for panel in panels):
        label += (
            f"\nblue: better than {BASELINE} by over 2 combined standard errors; "
            "orange: worse"
        )
    axes[-1].set_xlabel(
        label, fontsize=MEDIUM, color=BLACK, linespacing=1.5, parse_math=False
    )
    return _save(figure, path)


def plot_curves(
    records: Sequence[Record], path: str | Path, metric: str = "accuracy"
) -> Path:
    """Draw the mean over seeds of each method's curve, with a ± standard error band.

    At most 8 methods a panel are coloured and named: the baseline ``cross_entropy``
    and those that end best. The rest are grey.

    Args:
        records: of one experiment; those of ``metric``, ``last_metric`` or
            ``best_metric`` with a curve are drawn.
        path: the PNG file to write.
        metric: what the curves are of.

    Returns:
        The path.

    Raises:
        ValueError: no such record has a curve.
    """
    panels = curves(records, metric)
    if not panels:
        raise ValueError(_nothing(records, f"no record of {metric!r} has a curve"))
    figure, axes = _figure(3.7 * len(panels), [1.0] * len(panels))
    for ax, (name, panel) in zip(axes, panels.items(), strict=True):
        _lines(ax, name, panel, metric)
    axes[-1].set_xlabel("evaluation", fontsize=MEDIUM, color=BLACK)
    return _save(figure, path)


def curves(
    records: Sequence[Record], metric: str = "accuracy"
) -> dict[str, dict[str, Float[np.ndarray, "seeds evaluations"]]]:
    """Return setting -> method -> curves; seeds are cut to the shortest one's length.

    Args:
        records: of one experiment.
        metric: as in `plot_curves`.
    """
    names = (metric, f"last_{metric}", f"best_{metric}")
    drawn = [r for r in records if r.metric in names and r.curve]
    found: dict[str, dict[str, np.ndarray]] = {}
    for setting in settings(drawn):
        for method in methods(drawn, setting):
            by_seed = {
                r.seed: r.curve
                for r in drawn
                if (r.setting, r.method) == (setting, method)
            }
            length = min(map(len, by_seed.values()))
            found.setdefault(setting, {})[method] = np.array(
                [curve[:length] for curve in by_seed.values()]
            )
    return found


def _nothing(records: Sequence[Record], problem: str) -> str:
    found = ", ".join(dict.fromkeys(r.metric for r in records)) or "none"
    return f"{problem}: the records' metrics are {found}"


def _figure(height: float, heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(
        len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr]
    for ax in grid[:, 0]:
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.spines["bottom"].set_color("#C9CDD3")
        ax.tick_params(length=0, labelsize=SMALL, labelcolor="#4B5159", pad=5)
        ax.set_axisbelow(True)
    return figure, list(grid[:, 0])


def _title(ax: Axes, name: str) -> None:
    # Math text is off throughout: a $ in a name is a $.
    ax.set_title(
        name,
        loc="left",
        fontsize=LARGE,
        fontweight="bold",
        color=BLACK,
        pad=9,
        parse_math=False,
    )


def _scale(metric: str) -> float:
    percent = "%" in LABELS.get(metric, "") or metric_name(metric).endswith("%")
    return 100.0 if percent else 1.0


def _dots(ax: Axes, name: str, panel: dict[str, Summary], metric: str) -> None:
    scale, up = _scale(metric), higher_is_better(metric) is not False
    order = sorted(panel, key=lambda m: panel[m].mean, reverse=not up)
    baseline = panel.get(BASELINE)
    if baseline is not None:
        ax.axvline(scale * baseline.mean, color=BLACK, linewidth=1, zorder=1)
        if not math.isnan(baseline.error):
            low, high = (scale * (baseline.mean + s * baseline.error) for s in (-1, 1))
            ax.axvspan(low, high, color=BLACK, alpha=0.07, linewidth=0, zorder=0)
    for y, method in enumerate(order):
        summary = panel[method]
        color = _dot_color(method, summary, baseline, up)
        ax.errorbar(
            scale * summary.mean,
            y,
            xerr=None if math.isnan(summary.error) else scale * summary.error,
            fmt="o",
            markersize=6.5,
            color=color,
            markerfacecolor="white" if method == TEACHER else color,
            markeredgewidth=1.6,
            elinewidth=1.8,
            capsize=0,
            zorder=3,
        )
        ax.annotate(
            format_summary(metric, summary),
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=SMALL,
            color=color if color != NEUTRAL else "#4B5159",
            annotation_clip=False,
        )
    ax.set_yticks(range(len(order)), order)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
        label.set_color(BLACK)
        if label.get_text() == BASELINE:
            label.set_fontweight("bold")
    ax.set_ylim(-0.7, len(order) - 0.3)
    ax.margins(x=0.06)
    ax.grid(axis="x", color="#E6E8EB", linewidth=0.8)
    ax.hlines(
        range(len(order)),
        0,
        1,
        transform=ax.get_yaxis_transform(),
        color="#F1F2F4",
        linewidth=0.8,
        zorder=0,
    )
    _title(ax, name)


def _dot_color(
    method: str, summary: Summary, baseline: Summary | None, up: bool
) -> str:
    if method == BASELINE:
        return BLACK
    if method == TEACHER or baseline is None:
        return NEUTRAL if baseline is not None else BETTER
    gain = (summary.mean - baseline.mean) * (1 if up else -1)
    noise = 2 * math.hypot(summary.error, baseline.error)
    if math.isnan(noise) or abs(gain) <= noise:
        return NEUTRAL
    return BETTER if gain > 0 else WORSE


def _lines(
    ax: Axes,
    name: str,
    panel: dict[str, Float[np.ndarray, "seeds evaluations"]],
    metric: str,
) -> None:
    scale, up = _scale(metric), higher_is_better(f"last_{metric}") is not False
    means = {method: scale * values.mean(0) for method, values in panel.items()}
    ranked = sorted(
        panel, key=lambda m: (m != BASELINE, -means[m][-1] if up else means[m][-1])
    )
    highlighted = ranked[:HIGHLIGHTED]
    colors: dict[str, str] = dict(
        zip(
            [m for m in highlighted if m != BASELINE], (*PALETTE, NEUTRAL), strict=False
        )
    )
    colors[BASELINE] = BLACK
    for method in reversed(ranked):
        mean, seeds = means[method], len(panel[method])
        x = np.arange(1, len(mean) + 1)
        if method not in highlighted:
            ax.plot(x, mean, color="#CFD3D8", linewidth=0.9, zorder=1)
            continue
        color = colors[method]
        if seeds > 1:
            error = scale * panel[method].std(0, ddof=1) / math.sqrt(seeds)
            ax.fill_between(
                x, mean - error, mean + error, color=color, alpha=0.13, linewidth=0
            )
        ax.plot(x, mean, color=color, linewidth=1.7, zorder=3)
    longest = max(map(len, means.values()))
    ax.set_xlim(1, max(longest, 2))
    ax.set_ylim(*_range(list(means.values())))
    _name_ends(ax, {m: float(means[m][-1]) for m in highlighted}, colors)
    ax.grid(axis="y", color="#E6E8EB", linewidth=0.8)
    _title(ax, name)
    rest = len(ranked) - len(highlighted)
    note = f"; {rest} other methods in grey" if rest else ""
    several = any(len(values) > 1 for values in panel.values())
    what = "mean over seeds, band ± standard error" if several else "one seed"
    ax.set_ylabel(
        LABELS.get(metric, metric), fontsize=MEDIUM, color=BLACK, parse_math=False
    )
    ax.text(
        1,
        1.02,
        f"{what}{note}",
        transform=ax.transAxes,
        ha="right",
        fontsize=SMALL,
        color="#4B5159",
    )


def _range(means: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return limits that show the end: the first tenth of training may be outside."""
    late = np.concatenate([mean[len(mean) // 10 :] for mean in means])
    # Where a run went astray, no axis reaches.
    late = late[np.isfinite(late)] if np.isfinite(late).any() else np.zeros(1)
    low, high = float(late.min()), float(late.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _name_ends(ax: Axes, ends: dict[str, float], colors: dict[str, str]) -> None:
    """Write the names right of the curves' ends, pushed apart to be legible."""
    low, high = ax.get_ylim()
    order = sorted(ends, key=ends.__getitem__)
    gap = 0.062
    places = [(ends[m] - low) / (high - low) for m in order]
    # Two ways to make room, upward and downward, are each legible; so is their mean,
    # which stays closest to the ends.
    up, down = list(places), list(places)
    for i in range(1, len(places)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-1 - i] = min(down[-1 - i], down[-i] - gap)
    places = [(a + b) / 2 for a, b in zip(up, down, strict=True)]
    for method, y in zip(order, places, strict=True):
        end = (ends[method] - low) / (high - low)
        ax.plot(
            [1.0, 1.025],
            [end, y],
            transform=ax.transAxes,
            color=colors[method],
            linewidth=1,
            clip_on=False,
        )
        ax.text(
            1.032,
            y,
            method,
            transform=ax.transAxes,
            va="center",
            fontsize=SMALL,
            color=colors[method],
            fontweight="bold" if method == BASELINE else "normal",
            parse_math=False,
        )


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")
    return path
