"""What one paper alone needs: its modules, transforms, programs and protocol."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from jaxkd import registry
from jaxkd.arguments import checked


@checked()
def constructors(kind: type) -> dict[str, Callable[..., Any]]:
    """Return all papers' public functions that make a ``kind``, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for paper in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{paper.name}")
        found |= registry.constructors(vars(module), kind)
    return found
