"""Active learning: which examples to label next, and a few-shot teacher of them.

`pool` keeps the labelled and the unlabelled examples, `selection` chooses among the
latter, by the covers of `coverage` and by others; `few_shot_teacher` learns from what
was labelled. All are functions of arrays and know no model.
"""

from jaxkd.selection.coverage import cover_radius as cover_radius
from jaxkd.selection.coverage import k_center_greedy as k_center_greedy
from jaxkd.selection.coverage import min_dist as min_dist
from jaxkd.selection.few_shot_teacher import fit_clap as fit_clap
from jaxkd.selection.few_shot_teacher import fit_tip_adapter as fit_tip_adapter
from jaxkd.selection.pool import initial_pool as initial_pool
from jaxkd.selection.pool import label_picked as label_picked
from jaxkd.selection.strategies import badge_select as badge_select
from jaxkd.selection.strategies import class_balanced_select as class_balanced_select
from jaxkd.selection.strategies import coreset_select as coreset_select
from jaxkd.selection.strategies import entropy_select as entropy_select
from jaxkd.selection.strategies import pcoreset_select as pcoreset_select
from jaxkd.selection.strategies import random_select as random_select
