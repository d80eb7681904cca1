"""Knowledge distillation in JAX: pure losses, composable methods, one compiled step."""

from importlib import metadata as _metadata

if any(_metadata.distributions(name="jaxkd")):
    # Both write to the folder jaxkd, so that files of one are missing.
    raise ImportError(
        "the package jaxkd of the Python index, a k-d tree, is installed over this "
        "library: pip uninstall jaxkd jaxkd-distill, and install jaxkd-distill alone"
    )

from jaxkd import losses as losses
from jaxkd import methods as methods
from jaxkd import models as models
from jaxkd import networks as networks
from jaxkd.adapters import Steps as Steps
from jaxkd.interop.weights import load_weights as load_weights
from jaxkd.interop.weights import save_weights as save_weights
from jaxkd.methods.base import combine as combine
from jaxkd.methods.base import from_loss as from_loss
from jaxkd.methods.base import from_module as from_module
from jaxkd.network import Network as Network
from jaxkd.programs.distill import distill as distill
from jaxkd.types import Method as Method
from jaxkd.types import Outputs as Outputs
from jaxkd.types import Program as Program
from jaxkd.types import TrainState as TrainState

__version__ = "0.1.0"
