"""ProC-KD (Li et al. 2022, arXiv:2212.13180): prototypes carry over to other tasks."""

from jaxkd.papers.prockd.program import enhanced as enhanced
from jaxkd.papers.prockd.program import enhanced_variables as enhanced_variables
from jaxkd.papers.prockd.program import prockd as prockd
from jaxkd.papers.prockd.program import prockd_loss as prockd_loss
from jaxkd.papers.prockd.prototypes import (
    PrototypeAugmentation as PrototypeAugmentation,
)
from jaxkd.papers.prockd.prototypes import PrototypeModule as PrototypeModule
from jaxkd.papers.prockd.prototypes import netvlad as netvlad
from jaxkd.papers.prockd.prototypes import soft_assign as soft_assign
