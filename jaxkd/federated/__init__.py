"""Federated distillation: clients' filters, rounds as data, and the Flower engine.

The round itself is a program, `jaxkd.programs.federated_distillation`.
``jaxkd.federated.flower`` needs ``pip install 'jaxkd-distill[federated]'`` and is
imported by name only.
"""

from jaxkd.federated.clustering import kmeans_fit as kmeans_fit
from jaxkd.federated.clustering import (
    nearest_centroid_distance as nearest_centroid_distance,
)
from jaxkd.federated.filters import centroid_filter as centroid_filter
from jaxkd.federated.filters import density_filter as density_filter
from jaxkd.federated.filters import edgefd_mask as edgefd_mask
from jaxkd.federated.filters import id_threshold as id_threshold
from jaxkd.federated.filters import kulsif_fit as kulsif_fit
from jaxkd.federated.filters import kulsif_kernel as kulsif_kernel
from jaxkd.federated.filters import kulsif_ratio as kulsif_ratio
from jaxkd.federated.rounds import Rounds as Rounds
from jaxkd.federated.rounds import draw_private as draw_private
from jaxkd.federated.rounds import draw_proxies as draw_proxies
