"""The zoo: every model returns `Outputs` and names its taps in its docstring."""

from collections.abc import Callable
from typing import Any

from jaxkd.checks import unknown_name
from jaxkd.models.cnn import cnn
from jaxkd.models.ensemble import ensemble, member, with_logits
from jaxkd.models.mlp import mlp
from jaxkd.models.one import one_cnn
from jaxkd.types import Network

MODELS: dict[str, Callable[..., Network]] = {"cnn": cnn, "mlp": mlp, "one_cnn": one_cnn}
"""Model constructors by name, for configurations and exported folders."""


def create(name: str, **arguments: Any) -> Network:
    """Return the zoo's model of that name.

    Args:
        name: a key of `MODELS`.
        **arguments: passed to its constructor.

    Raises:
        ValueError: no model has that name.
    """
    if name not in MODELS:
        raise ValueError(unknown_name("model", name, MODELS))
    return MODELS[name](**arguments)


__all__ = [
    "MODELS",
    "cnn",
    "create",
    "ensemble",
    "member",
    "mlp",
    "one_cnn",
    "with_logits",
]
