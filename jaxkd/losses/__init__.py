"""Pure loss functions of arrays: no parameters, no models, no state.

Losses of single examples return one value each; losses that relate examples return a
scalar and take ``weights``. The teacher's arrays get no gradient.
"""

from jaxkd.losses.attention import at_loss, attention_map, cwd_loss, ft_loss, nst_loss
from jaxkd.losses.basics import weighted_mean
from jaxkd.losses.contrastive import crd_init, crd_loss, sample_negatives
from jaxkd.losses.correlation import dist_loss
from jaxkd.losses.divergences import (
    cross_entropy_loss,
    ctkd_temperature,
    dkd_loss,
    kd_loss,
    kl_divergence,
    standardize_logits,
)
from jaxkd.losses.features import (
    ab_loss,
    fsp_loss,
    fsp_matrix,
    hcl_loss,
    hint_loss,
    mgd_loss,
    mgd_mask,
    ofd_loss,
    ofd_margin,
    vid_log_scale_init,
    vid_loss,
)
from jaxkd.losses.online import dml_loss, kdcl_targets, one_gate_logits, one_loss
from jaxkd.losses.pooling import adaptive_average_pool, match_size, nearest_resize
from jaxkd.losses.relations import cc_loss, pkt_loss, rkd_loss, sp_loss

__all__ = [
    "ab_loss",
    "adaptive_average_pool",
    "at_loss",
    "attention_map",
    "cc_loss",
    "crd_init",
    "crd_loss",
    "cross_entropy_loss",
    "ctkd_temperature",
    "cwd_loss",
    "dist_loss",
    "dkd_loss",
    "dml_loss",
    "fsp_loss",
    "fsp_matrix",
    "ft_loss",
    "hcl_loss",
    "hint_loss",
    "kd_loss",
    "kdcl_targets",
    "kl_divergence",
    "match_size",
    "mgd_loss",
    "mgd_mask",
    "nearest_resize",
    "nst_loss",
    "ofd_loss",
    "ofd_margin",
    "one_gate_logits",
    "one_loss",
    "pkt_loss",
    "rkd_loss",
    "sample_negatives",
    "sp_loss",
    "standardize_logits",
    "vid_log_scale_init",
    "vid_loss",
    "weighted_mean",
]
