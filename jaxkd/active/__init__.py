"""Active learning: which examples to label next, and a few-shot teacher of them.

`pool` keeps the labelled and the unlabelled examples, `selection` chooses among the
latter, by the covers of `coverage` and by others; `few_shot_teacher` learns from what
was labelled. All are functions of arrays and know no model.
"""

from jaxkd.active.coverage import cover_radius, k_center_greedy, min_dist
from jaxkd.active.few_shot_teacher import fit_clap
from jaxkd.active.pool import initial_pool, label_picked
from jaxkd.active.selection import (
    badge_select,
    class_balanced_select,
    coreset_select,
    entropy_select,
    pcoreset_select,
    random_select,
)

__all__ = [
    "badge_select",
    "class_balanced_select",
    "coreset_select",
    "cover_radius",
    "entropy_select",
    "fit_clap",
    "initial_pool",
    "k_center_greedy",
    "label_picked",
    "min_dist",
    "pcoreset_select",
    "random_select",
]
