"""Searches for students: training-free scores, evolution, and spaces of networks."""

from jaxkd.search.diswot import (
    Statistics,
    channel_similarity,
    diswot_score,
    fc_grad,
    gaussian_reinit,
    relation_similarity,
    semantic_similarity,
)
from jaxkd.search.evolution import (
    Evaluated,
    SearchResult,
    random_search,
    regularized_evolution,
)
from jaxkd.search.proxies import code_similarity, grad_norm, nwot, snip, synflow
from jaxkd.search.ranking import rank_consistency, rank_sum
from jaxkd.search.spaces import ChoiceSpace
from jaxkd.search.supernets import Supernet, cell_supernet, depth_supernet

__all__ = [
    "ChoiceSpace",
    "Evaluated",
    "SearchResult",
    "Statistics",
    "Supernet",
    "cell_supernet",
    "channel_similarity",
    "code_similarity",
    "depth_supernet",
    "diswot_score",
    "fc_grad",
    "gaussian_reinit",
    "grad_norm",
    "nwot",
    "random_search",
    "rank_consistency",
    "rank_sum",
    "regularized_evolution",
    "relation_similarity",
    "semantic_similarity",
    "snip",
    "synflow",
]
