"""Parts that configurations are made of: an optimizer, a network, a choice of names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import optax

from jaxkd.checks import unknown_name
from jaxkd.models import create
from jaxkd.network import Network


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer, and how its rate changes over a run.

    Attributes:
        name: ``adam`` and ``sgd`` (momentum 0.9) add the decay to the gradient;
            ``adamw`` shrinks the weights by it.
        learning_rate: at its highest.
        weight_decay: times the weights.
        schedule: ``constant``, ``cosine`` or ``linear`` to ``final``, or ``steps``: a
            tenth after each milestone.
        milestones: epochs.
        warmup: steps in which the rate rises from 0; below 1 a share of the run.
        final: share of the rate that is left at the end.
        clip: the gradient's norm at most; 0 for any.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "steps"] = "cosine"
    milestones: tuple[int, ...] = ()
    warmup: float = 0.0
    final: float = 0.0
    clip: float = 0.0

    def scaled(self, share: float) -> "OptimizerConfig":
        """Return the optimizer with a share of the learning rate."""
        return replace(self, learning_rate=share * self.learning_rate)

    def rate(self, steps: int, epochs: int = 1) -> optax.Schedule:
        """Return the learning rate by the step.

        Args:
            steps: of the whole run.
            epochs: likewise, by which the milestones are counted.
        """
        peak = self.learning_rate
        warmup = round(self.warmup if self.warmup >= 1 else self.warmup * steps)
        left = max(steps - warmup, 1)
        schedules = {
            "constant": lambda: optax.constant_schedule(peak),
            "cosine": lambda: optax.cosine_decay_schedule(peak, left, self.final),
            "linear": lambda: optax.linear_schedule(peak, self.final * peak, left),
            "steps": lambda: optax.piecewise_constant_schedule(
                peak, {m * (steps // epochs) - warmup: 0.1 for m in self.milestones}
            ),
        }
        decay = choose("schedule", [self.schedule], schedules)[self.schedule]()
        if not warmup:
            return decay
        rise = optax.linear_schedule(0.0, peak, warmup)
        return optax.join_schedules([rise, decay], [warmup])

    def build(self, steps: int, epochs: int = 1) -> optax.GradientTransformation:
        """Return the optimizer of a run.

        Args:
            steps: of the whole run.
            epochs: likewise, by which the milestones are counted.

        Raises:
            ValueError: an unknown optimizer or schedule.
        """
        rate, decay = self.rate(steps, epochs), self.weight_decay
        parts = []
        if self.clip:
            parts.append(optax.clip_by_global_norm(self.clip))
        if decay and self.name != "adamw":
            parts.append(optax.add_decayed_weights(decay))
        makers = {
            "adam": lambda: optax.adam(rate),
            "adamw": lambda: optax.adamw(rate, weight_decay=decay),
            "sgd": lambda: optax.sgd(rate, momentum=0.9),
        }
        parts.append(choose("optimizer", [self.name], makers)[self.name]())
        return optax.chain(*parts)


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
