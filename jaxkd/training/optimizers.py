"""Optimizers as configurations, and what optax is told about the trees it optimises.

A distillation program's optimizer sees one tree, ``{"student": params, "method":
params}``: the student's weights, and those that the method trains along (projectors,
heads), empty if it has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import optax
from jaxtyping import PyTree

from jaxkd.arguments import checked, count, positive_share

SPARED = ("bias", "scale", "magnitude", "log_rate", "skip", "time_bias")
"""Names of biases, of norms' scales, and of what Mamba's layers have beside matrices.
In stacked layers these have an axis more, so that their number of axes tells nothing.
"""


@checked()
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

    Raises:
        ValueError: an unknown optimizer or schedule.
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
        decay = schedules[self.schedule]()
        if not warmup:
            return decay
        rise = optax.linear_schedule(0.0, peak, warmup)
        return optax.join_schedules([rise, decay], [warmup])

    def build(self, steps: int, epochs: int = 1) -> optax.GradientTransformation:
        """Return the optimizer of a run.

        Args:
            steps: of the whole run.
            epochs: likewise, by which the milestones are counted.
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
        parts.append(makers[self.name]())
        return optax.chain(*parts)


def decay_mask(params: PyTree) -> PyTree:
    """Return True for the weights that weight decay is for: matrices and embeddings.

    Norms and biases are spared, of stacked layers too, and what has fewer than two
    axes: ``optax.adamw(1e-3, weight_decay=0.1, mask=training.decay_mask)``.

    Args:
        params: any tree of weights with the names that Flax gives them.
    """

    def decays(path: tuple, weight: Any) -> bool:
        return _name(path[-1]) not in SPARED and weight.ndim > 1

    return jax.tree_util.tree_map_with_path(decays, params)


def part_labels(params: PyTree) -> PyTree:
    """Return the tree with each weight's part in its place: ``student`` or ``method``.

    For one optimizer a part: ``optax.multi_transform({"student": optax.adam(1e-3),
    "method": optax.sgd(0.1)}, training.part_labels)``.

    Args:
        params: the tree of a program's optimizer, or any other; the first name of a
            weight's path is its part.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[0]), params)


@checked(depth=count, decay=positive_share)
def layer_scales(depth: int, decay: float) -> tuple[float, ...]:
    """Return the share of the learning rate of the embedding, each block, and the rest.

    The last is 1, and each group before it has ``decay`` times the next one's.

    Args:
        depth: blocks.
        decay: in (0, 1].
    """
    return tuple(decay ** (depth + 1 - group) for group in range(depth + 2))


@checked(depth=count, decay=positive_share)
def scale_by_layer(
    depth: int,
    decay: float,
    *,
    blocks: str = "blocks",
    embedding: Sequence[str] = ("prefix", "positions", "patches"),
) -> optax.GradientTransformation:
    """Return what scales updates by `layer_scales`, to fine-tune a transformer.

    It comes last: ``optax.chain(optax.adamw(1e-3), scale_by_layer(12, 0.75))``.

    Args:
        depth: blocks.
        decay: in (0, 1].
        blocks: the list of blocks in a weight's path, such as ``blocks/3/...``.
        embedding: names in the paths of weights that come before the blocks.

    Raises:
        ValueError: from ``update``, a block beyond the depth.
    """
    scales = layer_scales(depth, decay)

    def scaled(path: tuple, update: Any) -> Any:
        names = [_name(key) for key in path]
        group = depth + 1
        if blocks in names:
            group = 1 + int(names[names.index(blocks) + 1])
        elif not set(embedding).isdisjoint(names):
            group = 0
        if group > depth and blocks in names:
            raise ValueError(f"depth is {depth}, but there is a block {group - 1}")
        return update * scales[group]

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates)
    )


def _name(key: object) -> str:
    return jax.tree_util.keystr((key,), simple=True)
