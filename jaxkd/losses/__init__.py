"""Pure loss functions of arrays: no parameters, no models, no state.

Losses of single examples return one value each; losses that relate examples return a
scalar and take ``weights``. The teacher's arrays get no gradient.
"""

from jaxkd.losses.attention import at_loss, attention_map, cwd_loss, ft_loss, nst_loss
from jaxkd.losses.basics import weighted_mean
from jaxkd.losses.binary import binary_kl_loss, binary_kl_norm_loss
from jaxkd.losses.channels import (
    cam_relation_loss,
    class_activation_maps,
    ickd_loss,
)
from jaxkd.losses.contrastive import crd_init, crd_loss, sample_negatives
from jaxkd.losses.correlation import dist_loss
from jaxkd.losses.diffusion import (
    boot_bootstrap_loss,
    boot_boundary_loss,
    boot_target,
    cfg_signal,
    denoising_loss,
    diffuse,
    signal_step_coef,
    to_signal,
    vp_schedule,
)
from jaxkd.losses.divergences import (
    cross_entropy_loss,
    ctkd_temperature,
    dkd_loss,
    kd_loss,
    kl_divergence,
    ofa_loss,
    prediction_entropy,
    reverse_kd_loss,
    standardize_logits,
    target_mask,
)
from jaxkd.losses.dual_head import dho_loss, dual_head_log_probs
from jaxkd.losses.ensembles import (
    ambiguity_filter,
    era_sharpen,
    fd_distill_loss,
    masked_ensemble,
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
from jaxkd.losses.few_shot import clap_class_weights, clap_loss, cosine_logits
from jaxkd.losses.first import first_loss, recalibrate_top_k, smooth_top_k
from jaxkd.losses.fusion import (
    ada_alpha,
    class_average_predictions,
    fused_kd_loss,
    trilateral_features,
    wls_alpha,
)
from jaxkd.losses.graphs import (
    edge_difference_log_probs,
    edge_high_frequency_loss,
    edge_low_frequency_loss,
    neighbor_cosine,
)
from jaxkd.losses.language import (
    adaptive_kl_loss,
    adaptive_kl_weights,
    divergence_loss,
    relation_loss,
    uld_loss,
)
from jaxkd.losses.online import (
    balance_weights,
    bdkd_loss,
    dml_loss,
    kdcl_targets,
    one_gate_logits,
    one_loss,
)
from jaxkd.losses.policy import (
    length_normalized_returns,
    policy_gradient_loss,
    reverse_kl_rewards,
    whiten,
)
from jaxkd.losses.pooling import adaptive_average_pool, match_size, nearest_resize
from jaxkd.losses.preferences import dpo_loss, rrhf_loss
from jaxkd.losses.ranking import plackett_luce_loss, pld_loss, teacher_ranking
from jaxkd.losses.relations import cc_loss, pkt_loss, rkd_loss, sp_loss
from jaxkd.losses.sinkd import sinkd_loss
from jaxkd.losses.taid import (
    TaidState,
    taid_init,
    taid_loss,
    taid_target,
    taid_update,
)
from jaxkd.losses.topk import (
    gather_log_probs,
    top_k_kd_loss,
    top_k_log_probs,
    top_k_reverse_kd_loss,
)

__all__ = [
    "TaidState",
    "ab_loss",
    "ada_alpha",
    "adaptive_average_pool",
    "adaptive_kl_loss",
    "adaptive_kl_weights",
    "ambiguity_filter",
    "at_loss",
    "attention_map",
    "balance_weights",
    "bdkd_loss",
    "binary_kl_loss",
    "binary_kl_norm_loss",
    "boot_bootstrap_loss",
    "boot_boundary_loss",
    "boot_target",
    "cam_relation_loss",
    "cc_loss",
    "cfg_signal",
    "clap_class_weights",
    "clap_loss",
    "class_activation_maps",
    "class_average_predictions",
    "cosine_logits",
    "crd_init",
    "crd_loss",
    "cross_entropy_loss",
    "ctkd_temperature",
    "cwd_loss",
    "denoising_loss",
    "dho_loss",
    "diffuse",
    "dist_loss",
    "divergence_loss",
    "dkd_loss",
    "dml_loss",
    "dpo_loss",
    "dual_head_log_probs",
    "edge_difference_log_probs",
    "edge_high_frequency_loss",
    "edge_low_frequency_loss",
    "era_sharpen",
    "fd_distill_loss",
    "first_loss",
    "fsp_loss",
    "fsp_matrix",
    "ft_loss",
    "fused_kd_loss",
    "gather_log_probs",
    "hcl_loss",
    "hint_loss",
    "ickd_loss",
    "kd_loss",
    "kdcl_targets",
    "kl_divergence",
    "length_normalized_returns",
    "masked_ensemble",
    "match_size",
    "mgd_loss",
    "mgd_mask",
    "nearest_resize",
    "neighbor_cosine",
    "nst_loss",
    "ofa_loss",
    "ofd_loss",
    "ofd_margin",
    "one_gate_logits",
    "one_loss",
    "pkt_loss",
    "plackett_luce_loss",
    "pld_loss",
    "policy_gradient_loss",
    "prediction_entropy",
    "recalibrate_top_k",
    "relation_loss",
    "reverse_kd_loss",
    "reverse_kl_rewards",
    "rkd_loss",
    "rrhf_loss",
    "sample_negatives",
    "signal_step_coef",
    "sinkd_loss",
    "smooth_top_k",
    "sp_loss",
    "standardize_logits",
    "taid_init",
    "taid_loss",
    "taid_target",
    "taid_update",
    "target_mask",
    "teacher_ranking",
    "to_signal",
    "top_k_kd_loss",
    "top_k_log_probs",
    "top_k_reverse_kd_loss",
    "trilateral_features",
    "uld_loss",
    "vid_log_scale_init",
    "vid_loss",
    "vp_schedule",
    "weighted_mean",
    "whiten",
    "wls_alpha",
]
