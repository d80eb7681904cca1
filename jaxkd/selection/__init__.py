"""Which examples to label, to train on, or to keep: active learning and pruning.

Scores have one form, ``score(seen) -> (examples,)``, of what networks say of the
examples (`Seen`, made by `observe`); `last_layer_influence` takes what they say of
validation examples too, and `influence_weights` makes weights of it. Selections have
another form, ``select(key, pool, q) -> positions``, of what is known of those to choose
among (`Pool`): in rounds of active learning (`label_picked`, `ask_teacher`), or once
for a share of a data set (`keep_fraction`). `few_shot_teacher` learns from what was
labelled.
"""

from jaxkd.selection.coverage import cover_radius as cover_radius
from jaxkd.selection.coverage import k_center_greedy as k_center_greedy
from jaxkd.selection.coverage import min_dist as min_dist
from jaxkd.selection.few_shot_teacher import fit_clap as fit_clap
from jaxkd.selection.few_shot_teacher import fit_tip_adapter as fit_tip_adapter
from jaxkd.selection.influence import Inverse as Inverse
from jaxkd.selection.influence import gauss_newton_product as gauss_newton_product
from jaxkd.selection.influence import hvp as hvp
from jaxkd.selection.influence import influence_scores as influence_scores
from jaxkd.selection.influence import influence_weights as influence_weights
from jaxkd.selection.influence import inverse_hvp_cg as inverse_hvp_cg
from jaxkd.selection.influence import inverse_hvp_last_layer as inverse_hvp_last_layer
from jaxkd.selection.influence import inverse_hvp_lissa as inverse_hvp_lissa
from jaxkd.selection.influence import last_layer_influence as last_layer_influence
from jaxkd.selection.pool import Asked as Asked
from jaxkd.selection.pool import Pool as Pool
from jaxkd.selection.pool import Select as Select
from jaxkd.selection.pool import ask_teacher as ask_teacher
from jaxkd.selection.pool import initial_pool as initial_pool
from jaxkd.selection.pool import keep_fraction as keep_fraction
from jaxkd.selection.pool import label_picked as label_picked
from jaxkd.selection.pruning import ccs_select as ccs_select
from jaxkd.selection.pruning import herding_select as herding_select
from jaxkd.selection.pruning import random_select as random_select
from jaxkd.selection.pruning import top_select as top_select
from jaxkd.selection.robust import RadDistribution as RadDistribution
from jaxkd.selection.robust import estimate_mistakes as estimate_mistakes
from jaxkd.selection.robust import rad_distribution as rad_distribution
from jaxkd.selection.robust import rad_select as rad_select
from jaxkd.selection.robust import (
    sample_without_replacement as sample_without_replacement,
)
from jaxkd.selection.robust import worst_case_value as worst_case_value
from jaxkd.selection.scores import aum_scores as aum_scores
from jaxkd.selection.scores import el2n_scores as el2n_scores
from jaxkd.selection.scores import forgetting_scores as forgetting_scores
from jaxkd.selection.scores import grand_scores as grand_scores
from jaxkd.selection.scores import memorization_scores as memorization_scores
from jaxkd.selection.scores import moderate_scores as moderate_scores
from jaxkd.selection.seen import Seen as Seen
from jaxkd.selection.seen import example_gradients as example_gradients
from jaxkd.selection.seen import gradient_norms as gradient_norms
from jaxkd.selection.seen import observe as observe
from jaxkd.selection.strategies import badge_select as badge_select
from jaxkd.selection.strategies import class_balanced_select as class_balanced_select
from jaxkd.selection.strategies import cluster_margin_select as cluster_margin_select
from jaxkd.selection.strategies import coreset_select as coreset_select
from jaxkd.selection.strategies import entropy_gain as entropy_gain
from jaxkd.selection.strategies import entropy_select as entropy_select
from jaxkd.selection.strategies import margin_gain as margin_gain
from jaxkd.selection.strategies import margin_select as margin_select
from jaxkd.selection.strategies import pcoreset_select as pcoreset_select
