"""Distilling the knowledge in data pruning (Ben-Baruch et al. 2025, arXiv:2403.07854).

The scores and selections are those of `jaxkd.selection`.
"""

from jaxkd.papers.data_pruning.method import alpha_for_fraction as alpha_for_fraction
from jaxkd.papers.data_pruning.method import pruned_kd as pruned_kd
from jaxkd.papers.data_pruning.ridge import ridge_self_distill as ridge_self_distill
