"""Parts that configurations are made of: an optimizer, a network, a choice of names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxkd.checks import unknown_name
from jaxkd.models import create
from jaxkd.network import Network
from jaxkd.training.optimizers import OptimizerConfig as OptimizerConfig

CIFAR_SGD = OptimizerConfig("sgd", 0.05, 5e-4, "steps", milestones=(150, 180, 210))
"""The recipe of the benchmarks on CIFAR-100, for 240 epochs at a batch size of 64."""


@dataclass(frozen=True)
class NetworkConfig:
    """A network of the zoo.

    Attributes:
        name: in ``jaxkd.models.MODELS``.
        arguments: of its constructor, but the classes.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, classes: int) -> Network:
        """Return the network for that many classes."""
        return create(self.name, classes=classes, **self.arguments)


def choose(kind: str, names: Iterable[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what some names stand for; everything if there are none.

    Args:
        kind: of the names, such as ``"method"``.
        names: to look up.
        known: what there is.

    Raises:
        ValueError: a name that is not known; it says what was meant.
    """
    names = list(names)
    for name in names:
        if name not in known:
            raise ValueError(unknown_name(kind, name, known))
    return {name: known[name] for name in names or known}
