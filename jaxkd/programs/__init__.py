"""Program constructors: everything that can be trained."""

from jaxkd.programs.aligned import (
    align_gradients,
    distill_aligned,
    distill_merged,
    gradient_cosine,
)
from jaxkd.programs.average import AveragedState, with_average
from jaxkd.programs.best import BestState, with_best
from jaxkd.programs.bilevel import bilevel, look_ahead_gradient
from jaxkd.programs.bootstrap import boot, denoiser
from jaxkd.programs.distill import distill
from jaxkd.programs.federated import (
    Client,
    ClientState,
    FederatedState,
    fd_client,
    federated_distillation,
)
from jaxkd.programs.off_policy import OffPolicyState, Replay, off_policy
from jaxkd.programs.on_policy import on_policy

__all__ = [
    "AveragedState",
    "BestState",
    "Client",
    "ClientState",
    "FederatedState",
    "OffPolicyState",
    "Replay",
    "align_gradients",
    "bilevel",
    "boot",
    "denoiser",
    "distill",
    "distill_aligned",
    "distill_merged",
    "fd_client",
    "federated_distillation",
    "gradient_cosine",
    "look_ahead_gradient",
    "off_policy",
    "on_policy",
    "with_average",
    "with_best",
]
