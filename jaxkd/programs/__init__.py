"""Program constructors: everything that can be trained."""

from jaxkd.programs.distill import distill

__all__ = ["distill"]
