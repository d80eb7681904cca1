"""One update of parameters: what every program is built on.

A `Player` moves some of the parameters by an optimizer of its own. `descend` takes its
gradient of one or several losses, over one batch or, with ``accumulate``, over a batch
in parts, and moves it. `alternate` is the program of players that take turns. `Keys`
names the streams of random numbers.

An objective is ``(params, carry, batch, keys, step) -> (losses, (carry, metrics))``:
``params`` are all parts by name, ``carry`` is what a forward pass changes (BatchNorm's
averages, memory banks), the losses are a `Loss`, a scalar, or a sequence of them.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from jaxkd.arguments import checked, count
from jaxkd.checks import check_batch, disjoint
from jaxkd.graphs import Graph
from jaxkd.methods.base import as_loss
from jaxkd.sharding.axes import constrain_batch
from jaxkd.types import NO_AXES, Axes, Batch, Loss, Metrics, Program

Params = dict[str, PyTree]

Objective = Callable[..., tuple[Any, tuple[Any, dict[str, Any]]]]

Merge = Callable[[list[PyTree]], tuple[PyTree, Metrics]]
"""Gradients of several losses ``-> (the one to apply, metrics)``."""


class Keys:
    """Named streams of random keys: ``keys.sampling`` is a key, the same every time.

    Streams of different names are independent, whichever a program uses, so a new one
    changes no other.

    Args:
        root: the key all of them come from.
    """

    def __init__(self, root: PRNGKeyArray):
        self._root = root

    def __getattr__(self, name: str) -> PRNGKeyArray:
        if name.startswith("_"):
            raise AttributeError(name)
        return jax.random.fold_in(self._root, zlib.crc32(name.encode()))

    def of(self, name: str) -> "Keys":
        """Return the streams of one player, or another part of a step, by name."""
        return Keys(getattr(self, name))

    def at(self, index: Any) -> "Keys":
        """Return the streams of one step, part of a batch, or client, by number."""
        return Keys(jax.random.fold_in(self.numbered, index))


class Player(NamedTuple):
    """A selection of the parameters, and the optimizer that moves it.

    Attributes:
        parts: names of the parts of ``params`` that it moves; the others stand still.
        optimizer: any optax transformation; clipping is a part of it, as in
            ``optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))``.
    """

    parts: tuple[str, ...]
    optimizer: optax.GradientTransformation

    def own(self, params: Params) -> Params:
        """Return the parts that it moves."""
        return {name: params[name] for name in self.parts}

    def init(self, params: Params) -> Any:
        """Return the optimizer's first state."""
        return self.optimizer.init(self.own(params))

    def move(
        self, gradient: Params, opt_state: Any, params: Params
    ) -> tuple[Params, Any]:
        """Return all parameters after one update of its own, and the optimizer's state.

        Args:
            gradient: of its own parts.
            opt_state: the optimizer's.
            params: all parts.
        """
        own = self.own(params)
        updates, opt_state = self.optimizer.update(gradient, opt_state, own)
        moved: Any = optax.apply_updates(own, updates)
        return {**params, **moved}, opt_state


class Descent(NamedTuple):
    """What `descend` leaves.

    Attributes:
        params: all parts, the player's moved.
        opt_state: its optimizer's.
        carry: what the forward passes changed.
        metrics: the objective's, ``loss`` and ``grad_norm``.
    """

    params: Params
    opt_state: Any
    carry: Any
    metrics: Metrics


@checked(accumulate=count)
def descend(
    player: Player,
    opt_state: Any,
    objective: Objective,
    params: Params,
    carry: Any,
    batch: Batch,
    keys: Keys,
    step: Any,
    *,
    accumulate: int = 1,
    merge: Merge | None = None,
    moves: Any = True,
) -> Descent:
    """Return everything after one update of a player's parameters.

    With ``accumulate`` the batch is worked through in that many parts, in the memory
    of one. The gradient is that of the whole batch: every term of a loss is divided
    once, by its weight over all parts (the weights come first, from the masks alone,
    so XLA drops the forward passes of that round). Losses that relate the examples of
    a batch relate those of a part. ``carry`` goes from part to part.

    Args:
        player: who moves.
        opt_state: its optimizer's.
        objective: see the module; each loss has a gradient of its own.
        params: all parts.
        carry: what forward passes change.
        batch: arrays with examples on the first axis; scalars go to every part.
        keys: streams of this step; a part of the batch has its own.
        step: updates so far.
        accumulate: parts of the batch.
        merge: of several losses' gradients; None for their sum.
        moves: whether it is the player's turn, a boolean that may be traced. Where it
            is not, its losses are only reported, and nothing else changes.

    Raises:
        ValueError: a batch that ``accumulate`` does not divide, or of a graph; a loss
            that is no scalar and no `Loss`; two metrics of one name.
    """
    if moves is not True:
        given = player, opt_state, objective, params, carry, batch, keys, step

        def move() -> Descent:
            return descend(*given, accumulate=accumulate, merge=merge)

        def look() -> Descent:
            found = move().metrics
            found = {**found, "grad_norm": jnp.zeros_like(found["grad_norm"])}
            return Descent(params, opt_state, carry, found)

        return look() if moves is False else jax.lax.cond(moves, move, look)
    own = player.own(params)

    def evaluated(own: Params, carry: Any, part: Batch, keys: Keys):
        found, (carry, metrics) = objective({**params, **own}, carry, part, keys, step)
        several = isinstance(found, Sequence) and not isinstance(found, Loss)
        losses = [as_loss(loss) for loss in (found if several else [found])]
        return losses, carry, {k: as_metric(v) for k, v in metrics.items()}

    def gradients(carry: Any, part: Batch, keys: Keys, weights: list[Array] | None):
        """Return the losses, their gradients divided by ``weights``, and the rest."""

        def divided(own: Params):
            losses, after, metrics = evaluated(own, carry, part, keys)
            over = weights or [loss.weight for loss in losses]
            values = [x.over(w) for x, w in zip(losses, over, strict=True)]
            return values, (losses, after, metrics)

        values, pull, (losses, after, metrics) = jax.vjp(divided, own, has_aux=True)
        pulled = [
            pull([jnp.full_like(v, j == i) for j, v in enumerate(values)])[0]
            for i in range(len(values))
        ]
        return losses, pulled, after, metrics

    if accumulate == 1:
        losses, pulled, carry, metrics = gradients(carry, batch, keys, None)
    else:
        parts = split_batch(batch, accumulate)
        numbers = jnp.arange(accumulate)

        def weigh(carry: Any, drawn: Any):
            part, i = drawn
            losses, carry, _ = evaluated(own, carry, _placed(part), keys.at(i))
            return carry, [loss.weight for loss in losses]

        def add(state: Any, drawn: Any):
            carry, summed = state
            part, i = drawn
            losses, pulled, carry, metrics = gradients(
                carry, _placed(part), keys.at(i), weights
            )
            summed = jax.tree.map(lambda a, g: a + g.astype(a.dtype), summed, pulled)
            return (carry, summed), (losses, metrics)

        _, every = jax.lax.scan(weigh, carry, (parts, numbers))
        weights = [weight.sum(0) for weight in every]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x.dtype)), own)
        (carry, summed), (losses, metrics) = jax.lax.scan(
            add, (carry, [zeros] * len(weights)), (parts, numbers)
        )
        pulled = jax.tree.map(
            lambda g, x: g.astype(x.dtype), summed, [own] * len(every)
        )
        losses = [Loss(loss.total.sum(0), loss.weight.sum(0)) for loss in losses]
        metrics = {
            name: Loss(m.total.sum(0), m.weight.sum(0))
            if isinstance(m, Loss)
            else m.mean(0)
            for name, m in metrics.items()
        }
    gradient, merged = (merge or _sum)(pulled)
    params, opt_state = player.move(gradient, opt_state, params)
    reported = {
        name: m.value if isinstance(m, Loss) else m
        for name, m in metrics.items()
        if name != "loss"
    }
    own_metrics = {
        "loss": sum((loss.value for loss in losses), jnp.zeros(())),
        "grad_norm": optax.tree.norm(gradient),
    }
    metrics = disjoint(own_metrics, merged, reported)
    return Descent(params, opt_state, carry, metrics)


class Turn(NamedTuple):
    """One player's turn in a step of `alternate`.

    Attributes:
        player: who moves.
        objective: down which loss.
        every: steps between two moves; in the others its loss is only reported.
    """

    player: Player
    objective: Objective
    every: int = 1


@flax.struct.dataclass
class PlayState:
    """The state of `alternate`'s programs.

    Attributes:
        step: steps done, an int32 scalar.
        key: the key all later randomness comes from.
        params: all parts by name.
        carry: what forward passes change.
        opt_state: each player's optimizer's, by the turn's name.
    """

    step: Any
    key: Any
    params: Any
    carry: Any
    opt_state: Any


@checked(accumulate=count)
def alternate(
    init: Callable[[Keys, Batch], tuple[Params, Any]],
    turns: Mapping[str, Turn],
    *,
    accumulate: int = 1,
    axes: Axes = NO_AXES,
) -> Program:
    """Return the program of players that take turns, each on its own loss.

    A step is one turn of each, in order, and each sees what those before it have moved:
    a student against an augmenter that looks for what it cannot do yet, or networks
    that teach each other.

    Args:
        init: ``(keys, batch) -> (params, carry)``; params are a dict of parts.
        turns: by name; a part may be moved by several players, or by none (frozen).
        accumulate: parts of a batch, see `descend`.
        axes: of the networks' weights, for meshes; see `network.axes_of`.

    Returns:
        A program whose state is a `PlayState`. Its metrics are ``loss``, the sum of the
        players', and each player's own behind its name, as ``student_loss``.

    Raises:
        ValueError: no turns, or ``every`` below 1; as `descend`.
    """
    if not turns or any(turn.every < 1 for turn in turns.values()):
        raise ValueError(
            "turns must name at least one Turn, each with every of at least 1, got "
            f"{ {name: turn.every for name, turn in turns.items()} }"
        )

    def start(key: PRNGKeyArray, batch: Batch) -> PlayState:
        check_batch(batch)
        keys = Keys(key)
        params, carry = init(keys, batch)
        opt_state = {name: turn.player.init(params) for name, turn in turns.items()}
        return PlayState(jnp.zeros((), jnp.int32), keys.run, params, carry, opt_state)

    def step(state: PlayState, batch: Batch) -> tuple[PlayState, Metrics]:
        params, carry, opt_state = state.params, state.carry, {}
        metrics: Metrics = {"loss": jnp.zeros(())}
        for name, turn in turns.items():
            found = descend(
                turn.player,
                state.opt_state[name],
                turn.objective,
                params,
                carry,
                batch,
                Keys(state.key).at(state.step).of(name),
                state.step,
                accumulate=accumulate,
                moves=turn.every == 1 or state.step % turn.every == 0,
            )
            params, opt_state[name], carry, own = found
            metrics["loss"] += own["loss"]
            metrics |= {f"{name}_{metric}": value for metric, value in own.items()}
        return (
            PlayState(state.step + 1, state.key, params, carry, opt_state),
            metrics,
        )

    return Program(start, step, axes=axes)


def as_metric(metric: Any) -> Any:
    """Return a metric as an array, or the `Loss` that it is."""
    return metric if isinstance(metric, Loss) else jnp.asarray(metric)


@checked(parts=count)
def split_batch(batch: Batch, parts: int) -> Batch:
    """Return the batch in parts: every array (examples, ...) as (parts, rest, ...).

    A part takes every ``parts``-th example, so that each device keeps what it has.

    Raises:
        ValueError: a number of parts below 1 or that does not divide the examples, or a
            graph, which is one example.
    """

    def split(path: Any, x: Any) -> Array:
        name = f"batch{jax.tree_util.keystr(path)}"
        if isinstance(x, Graph):
            raise ValueError(
                f"{name} is a graph, which is one example: accumulate=1, or train on "
                "smaller graphs"
            )
        if not jnp.ndim(x):
            return jnp.broadcast_to(x, (parts,))
        if len(x) % parts:
            raise ValueError(
                f"{name} holds {len(x)} examples, which accumulate={parts} does not "
                "divide: use a batch size that is a multiple of it"
            )
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    return jax.tree_util.tree_map_with_path(
        split, dict(batch), is_leaf=lambda x: isinstance(x, Graph)
    )


def _placed(part: Batch) -> Batch:
    return jax.tree.map(lambda x: constrain_batch(x) if x.ndim else x, part)


def _wide(dtype: Any) -> Any:
    """Return the dtype in which gradients of this one are added."""
    return jnp.promote_types(dtype, jnp.float32)


def _sum(gradients: list[PyTree]) -> tuple[PyTree, Metrics]:
    first, *others = gradients
    for other in others:
        first = jax.tree.map(jnp.add, first, other)
    return first, {}
