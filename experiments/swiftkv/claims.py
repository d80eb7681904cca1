"""What the small run is to show, stated before it was run."""

from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.quantities import Quantity, cell, derived

SETTING = "tiny_shakespeare"


def every_arm(metric: str) -> Quantity:
    """Return a metric in every arm and seed that has it."""
    return derived(
        "every arm",
        lambda records: {
            (r.method, r.seed): r.value
            for r in records
            if (r.metric, r.setting) == (metric, SETTING)
        },
        setting=SETTING,
    )


UNTRAINED = cell("untrained_l3", fixed=True)
CLAIMS = [
    contrast("kd_l3", 0.4 * UNTRAINED, "teacher_kl", setting=SETTING),
    contrast("kd_l3", 0.5 * UNTRAINED, "nll_gap", setting=SETTING, lower=True),
    contrast("kd_l3", "labels_l3", "teacher_kl", setting=SETTING),
    contrast("kd_l4", "kd_l3", "teacher_kl", setting=SETTING),
    contrast("kd_l5", "kd_l4", "teacher_kl", setting=SETTING),
    contrast("kd_l3", "kd_l3_g3", "teacher_kl", setting=SETTING),
    contrast("kd_l3", "full_kd_l3", "teacher_kl", setting=SETTING),
    *(
        observed(every_arm(metric), "<=", bound, metric, setting=SETTING)
        for metric, bound in (
            ("frozen_change", 0.0),
            ("stage_error", 1e-5),
            ("chunk_error", 1e-5),
        )
    ),
]
