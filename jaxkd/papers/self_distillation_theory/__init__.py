"""Self-distillation in theory (Borup, Andersen 2021, arXiv:2102.13088)."""

from jaxkd.papers.self_distillation_theory.kernel import Fits as Fits
from jaxkd.papers.self_distillation_theory.kernel import Weight as Weight
from jaxkd.papers.self_distillation_theory.kernel import (
    greedy_optimal_weights as greedy_optimal_weights,
)
from jaxkd.papers.self_distillation_theory.kernel import (
    krr_self_distill as krr_self_distill,
)
from jaxkd.papers.self_distillation_theory.kernel import (
    optimal_distill_weight as optimal_distill_weight,
)
from jaxkd.papers.self_distillation_theory.kernel import rbf_kernel as rbf_kernel
from jaxkd.papers.self_distillation_theory.kernel import (
    ridge_smoother as ridge_smoother,
)
from jaxkd.papers.self_distillation_theory.kernel import (
    self_distill_closed_form as self_distill_closed_form,
)
from jaxkd.papers.self_distillation_theory.kernel import (
    self_distill_limit as self_distill_limit,
)
from jaxkd.papers.self_distillation_theory.kernel import (
    spectral_shrinkage as spectral_shrinkage,
)
from jaxkd.papers.self_distillation_theory.networks import (
    norm_regularizer as norm_regularizer,
)
from jaxkd.papers.self_distillation_theory.networks import regularized as regularized
from jaxkd.papers.self_distillation_theory.networks import (
    self_distill_mse_loss as self_distill_mse_loss,
)
from jaxkd.papers.self_distillation_theory.networks import (
    self_distillation as self_distillation,
)
