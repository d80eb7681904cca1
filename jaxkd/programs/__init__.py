"""Program constructors: everything that can be trained."""

from jaxkd.programs.average import AveragedState, with_average
from jaxkd.programs.distill import distill

__all__ = ["AveragedState", "distill", "with_average"]
