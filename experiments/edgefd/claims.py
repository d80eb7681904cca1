"""What the records are to show, fixed before the first run."""

from experiments.edgefd.config import PRESETS, table
from experiments.edgefd.filters import cost_setting
from jaxkd.reporting.claims import Claim, contrast

EXPECTED_FILTER = {"strong": (0.87, 1.00), "weak": (0.75, 0.93)}
"""Precision and recall of EdgeFD's filter in an earlier trial of the small setting."""


def claims_of(setting: str, kind: str) -> list[Claim]:
    """Return the claims about one table."""
    if kind == "iid":
        return [
            contrast(
                "edgefd",
                "fedmd",
                "last_accuracy",
                0.01,
                "equivalence",
                setting=setting,
                because="a fifth of the gain that is claimed for other partitions",
            )
        ]
    return [
        contrast("edgefd", "fedmd", "last_accuracy", 0.05, setting=setting),
        contrast("edgefd", "selective_fd", "last_accuracy", setting=setting),
        *(
            contrast(
                "edgefd",
                reference,
                "last_accuracy",
                margin,
                "non-inferiority",
                setting=setting,
                because="fixed before the first run, by an earlier trial",
            )
            for reference, margin in (("oracle", 0.04), ("edgefd_iid", 0.07))
        ),
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
        contrast(
            "edgefd",
            value,
            metric,
            0.05,
            "equivalence",
            setting=kind,
            because="fixed before the first run, by an earlier trial",
        )
        for kind, values in EXPECTED_FILTER.items()
        for metric, value in zip(
            ("filter_precision", "filter_recall"), values, strict=True
        )
    ),
    *(contrast("kmeans", "kulsif_fit", "filter_ms", setting=s) for s in COST_SETTINGS),
]
