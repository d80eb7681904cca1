"""Federated distillation: clients' filters, rounds as data, and the Flower engine.

The round itself is a program, `jaxkd.programs.federated_distillation`.
``jaxkd.federated.flower`` needs ``pip install 'jaxkd[federated]'`` and is imported by
name only.
"""

from jaxkd.federated.clustering import kmeans_fit, nearest_centroid_distance
from jaxkd.federated.filters import (
    edgefd_mask,
    id_threshold,
    kulsif_fit,
    kulsif_ratio,
)
from jaxkd.federated.rounds import Rounds, draw_private, draw_proxies

__all__ = [
    "Rounds",
    "draw_private",
    "draw_proxies",
    "edgefd_mask",
    "id_threshold",
    "kmeans_fit",
    "kulsif_fit",
    "kulsif_ratio",
    "nearest_centroid_distance",
]
