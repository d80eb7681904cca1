"""What the small run is to show, stated before it was run."""

from collections.abc import Sequence

from jaxkd.reporting.claims import Claim, Status, Verdict, at_most, exceeds
from jaxkd.reporting.records import Record

SETTING = "tiny_shakespeare"


def every_record_at_most(metric: str, bound: float) -> Claim:
    """Claim that a metric is at most a number in every arm and seed that has it."""

    def judge(records: Sequence[Record]) -> Verdict:
        found = [r for r in records if r.metric == metric and r.setting == SETTING]
        if not found:
            return Verdict(Status.NOT_ESTABLISHED, f"no records of {metric}")
        most = max(found, key=lambda record: record.value)
        return Verdict(
            Status.HOLDS if most.value <= bound else Status.FAILS,
            f"at most {most.value:.3g} ({most.method}) of {len(found)} records",
        )

    return Claim(
        f"{metric} at most {bound:g} ({SETTING})",
        f"{metric} is at most {bound:g} in every arm and seed",
        judge,
        setting=SETTING,
    )


CLAIMS = [
    at_most("kd_l3", "untrained_l3", "teacher_kl", 0.4, SETTING),
    at_most("kd_l3", "untrained_l3", "nll_gap", 0.5, SETTING),
    exceeds("labels_l3", "kd_l3", "teacher_kl", SETTING),
    exceeds("kd_l3", "kd_l4", "teacher_kl", SETTING),
    exceeds("kd_l4", "kd_l5", "teacher_kl", SETTING),
    exceeds("kd_l3_g3", "kd_l3", "teacher_kl", SETTING),
    exceeds("full_kd_l3", "kd_l3", "teacher_kl", SETTING),
    every_record_at_most("frozen_change", 0.0),
    every_record_at_most("stage_error", 1e-5),
    every_record_at_most("chunk_error", 1e-5),
]
