"""What the records are to show, stated before they were made."""

from collections.abc import Sequence

from experiments.ffg2m.config import SETTINGS
from jaxkd.reporting.claims import Claim, Status, Verdict, exceeds, not_below
from jaxkd.reporting.records import Record, select


def on_every_seed(low: str, high: Sequence[str], metric: str, setting: str) -> Claim:
    """Claim that a method's metric is below others' on every seed that both ran.

    Args:
        low: the method said to be below.
        high: the methods said to be above.
        metric: a record's metric.
        setting: a record's setting.
    """

    def judge(records: Sequence[Record]) -> Verdict:
        lowest = {r.seed: r.value for r in select(records, low, metric, setting)}
        counts = {}
        for method in high:
            found = {r.seed: r.value for r in select(records, method, metric, setting)}
            seeds = lowest.keys() & found.keys()
            if not seeds:
                missing = f"no seed of both {low} and {method} ({setting})"
                return Verdict(Status.NOT_ESTABLISHED, missing)
            counts[method] = (sum(lowest[s] < found[s] for s in seeds), len(seeds))
        holds = all(below == of for below, of in counts.values())
        return Verdict(
            Status.HOLDS if holds else Status.FAILS,
            "; ".join(
                f"{low} below {method} on {below} of {of} seeds"
                for method, (below, of) in counts.items()
            ),
        )

    others = " and ".join(high)
    return Claim(
        f"{low} below {others} in {metric} on every seed ({setting})",
        f"{low}'s {metric} is below that of {others} on every seed",
        judge,
        low,
        setting,
    )


WITH_NUMBERS = ("cora-gcn", "citeseer-gcn")
CLAIMS = [
    *(
        claim
        for setting in WITH_NUMBERS
        for claim in (
            exceeds("ffg2m", "mlp", "test_accuracy", setting, errors=0.0, margin=0.1),
            exceeds(
                "ffg2m", "teacher", "test_accuracy", setting, errors=0.0, margin=0.005
            ),
        )
    ),
    exceeds("ffg2m", "glnn", "test_accuracy", "citeseer-gcn", errors=1.0),
    not_below("ffg2m", "glnn", "test_accuracy", "cora-gcn", errors=0.0, margin=0.01),
    *(
        claim
        for setting in WITH_NUMBERS
        for claim in (
            on_every_seed("ffg2m", ("glnn", "low"), "high_frequency_kl", setting),
            exceeds("ffg2m", "glnn", "teacher_kl", setting, errors=0.0),
        )
    ),
    *(
        exceeds("ffg2m", worse, "test_accuracy", setting)
        for setting in SETTINGS
        if setting not in WITH_NUMBERS
        for worse in ("mlp", "teacher")
    ),
]
