"""What the records are to show, fixed before the first run."""

from collections.abc import Sequence

from experiments.edgefd.config import PRESETS, table
from experiments.edgefd.filters import cost_setting
from jaxkd.reporting.claims import Claim, Status, Verdict, exceeds, not_below
from jaxkd.reporting.records import Record, select, summarize
from jaxkd.reporting.tables import format_summary, format_value, metric_name


def close_to(
    method: str, metric: str, expected: float, margin: float, setting: str
) -> Claim:
    """Claim that the mean of a metric is within a margin of a value."""

    def judge(records: Sequence[Record]) -> Verdict:
        values = [r.value for r in select(records, method, metric, setting)]
        if not values:
            return Verdict(Status.NOT_ESTABLISHED, f"no records of {method}'s {metric}")
        found = summarize(values)
        held = abs(found.mean - expected) <= margin
        return Verdict(
            Status.HOLDS if held else Status.FAILS,
            f"{format_summary(metric, found)}, expected "
            f"{format_value(metric, expected)} ± {format_value(metric, margin)}, in "
            f"{metric_name(metric)}",
        )

    return Claim(
        f"{method}'s {metric_name(metric)} near {format_value(metric, expected)} "
        f"({setting})",
        f"the mean is within {format_value(metric, margin)} of it",
        judge,
        method,
        setting,
    )


EXPECTED_FILTER = {"strong": (0.87, 1.00), "weak": (0.75, 0.93)}
"""Precision and recall of EdgeFD's filter in an earlier trial of the small setting."""


def claims_of(setting: str, kind: str) -> list[Claim]:
    """Return the claims about one table."""
    if kind == "iid":
        return [
            not_below("edgefd", "fedmd", "last_accuracy", setting, 0.0, margin=0.01),
            not_below("fedmd", "edgefd", "last_accuracy", setting, 0.0, margin=0.01),
        ]
    return [
        exceeds("edgefd", "fedmd", "last_accuracy", setting, 1.0, margin=0.05),
        exceeds("edgefd", "selective_fd", "last_accuracy", setting),
        not_below("edgefd", "oracle", "last_accuracy", setting, 0.0, margin=0.04),
        not_below("edgefd", "edgefd_iid", "last_accuracy", setting, 0.0, margin=0.07),
    ]


COST_SETTINGS = (cost_setting("digits", 64), cost_setting("mnist", 784))
CLAIMS = [
    *(
        claim
        for preset in PRESETS.values()
        for dataset in preset.datasets
        for kind in preset.partitions
        for claim in claims_of(table(dataset, kind), kind)
    ),
    *(
        close_to("edgefd", metric, value, 0.05, kind)
        for kind, values in EXPECTED_FILTER.items()
        for metric, value in zip(
            ("filter_precision", "filter_recall"), values, strict=True
        )
    ),
    *(exceeds("kulsif_fit", "kmeans", "filter_ms", s) for s in COST_SETTINGS),
]
