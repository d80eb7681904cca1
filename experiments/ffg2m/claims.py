"""What the records are to show, stated before they were made."""

from experiments.ffg2m.config import SETTINGS
from jaxkd.reporting.claims import Claim, all_of, contrast

WITH_NUMBERS = ("cora-gcn", "citeseer-gcn")


def mechanism(setting: str) -> list[Claim]:
    """Return what the high-frequency term is to do, and its price in node-wise KL."""
    return [
        all_of(
            f"ffg2m below glnn and low in high-frequency KL ({setting})",
            [
                contrast("ffg2m", other, "high_frequency_kl", setting=setting)
                for other in ("glnn", "low")
            ],
        ),
        contrast("ffg2m", "glnn", "teacher_kl", setting=setting, lower=False),
    ]


CLAIMS = [
    *(
        contrast("ffg2m", other, "test_accuracy", margin, setting=setting)
        for setting in WITH_NUMBERS
        for other, margin in (("mlp", 0.1), ("teacher", 0.005))
    ),
    contrast("ffg2m", "glnn", "test_accuracy", setting="citeseer-gcn"),
    contrast(
        "ffg2m",
        "glnn",
        "test_accuracy",
        0.01,
        "non-inferiority",
        setting="cora-gcn",
        because="the standard deviation of both in an earlier trial was larger",
    ),
    *(claim for setting in WITH_NUMBERS for claim in mechanism(setting)),
    *(
        contrast("ffg2m", worse, "test_accuracy", setting=setting)
        for setting in SETTINGS
        if setting not in WITH_NUMBERS
        for worse in ("mlp", "teacher")
    ),
]
