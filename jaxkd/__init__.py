"""Knowledge distillation in JAX: pure losses, composable methods, one compiled step."""

from jaxkd import losses, methods, models
from jaxkd.methods.base import combine, from_loss, from_module
from jaxkd.programs.distill import distill
from jaxkd.types import Method, Network, Outputs, Program, TrainState

__version__ = "0.1.0"

__all__ = [
    "Method",
    "Network",
    "Outputs",
    "Program",
    "TrainState",
    "combine",
    "distill",
    "from_loss",
    "from_module",
    "losses",
    "methods",
    "models",
]
