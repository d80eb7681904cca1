"""Program constructors: everything that can be trained."""

from jaxkd.programs.aligned import align_gradients as align_gradients
from jaxkd.programs.aligned import distill_aligned as distill_aligned
from jaxkd.programs.aligned import distill_merged as distill_merged
from jaxkd.programs.aligned import gradient_cosine as gradient_cosine
from jaxkd.programs.average import AveragedState as AveragedState
from jaxkd.programs.average import with_average as with_average
from jaxkd.programs.best import BestState as BestState
from jaxkd.programs.best import with_best as with_best
from jaxkd.programs.bilevel import bilevel as bilevel
from jaxkd.programs.bilevel import look_ahead_gradient as look_ahead_gradient
from jaxkd.programs.distill import distill as distill
from jaxkd.programs.federated import Client as Client
from jaxkd.programs.federated import ClientState as ClientState
from jaxkd.programs.federated import FederatedState as FederatedState
from jaxkd.programs.federated import fd_client as fd_client
from jaxkd.programs.federated import federated_distillation as federated_distillation
from jaxkd.programs.off_policy import OffPolicyState as OffPolicyState
from jaxkd.programs.off_policy import Replay as Replay
from jaxkd.programs.off_policy import off_policy as off_policy
from jaxkd.programs.on_policy import on_policy as on_policy
