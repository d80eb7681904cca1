"""Searches for students: training-free scores, evolution, and spaces of networks."""

from jaxkd.search.evolution import Evaluated as Evaluated
from jaxkd.search.evolution import SearchResult as SearchResult
from jaxkd.search.evolution import random_search as random_search
from jaxkd.search.evolution import regularized_evolution as regularized_evolution
from jaxkd.search.proxies import code_similarity as code_similarity
from jaxkd.search.proxies import grad_norm as grad_norm
from jaxkd.search.proxies import nwot as nwot
from jaxkd.search.proxies import snip as snip
from jaxkd.search.proxies import synflow as synflow
from jaxkd.search.ranking import rank_consistency as rank_consistency
from jaxkd.search.ranking import rank_sum as rank_sum
from jaxkd.search.spaces import ChoiceSpace as ChoiceSpace
from jaxkd.search.supernets import Supernet as Supernet
from jaxkd.search.supernets import cell_supernet as cell_supernet
from jaxkd.search.supernets import depth_supernet as depth_supernet
from jaxkd.search.supernets import jit_once as jit_once
from jaxkd.search.zero_cost import zero_cost as zero_cost
