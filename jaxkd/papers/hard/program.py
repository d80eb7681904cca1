"""HARD: a student learns where a learned augmentation makes it differ from its teacher.

Nix, Burg, Sinz 2023, arXiv:2305.14890. Two players: the augmenter goes up teacher's and
student's disagreement on the images that it makes, the student learns to agree there.
"""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, fraction, natural, positive, probability
from jaxkd.checks import disjoint
from jaxkd.losses.hard import hard_augmenter_loss
from jaxkd.methods import cross_entropy
from jaxkd.methods.base import as_loss, masked_loss, summed
from jaxkd.methods.masks import counted_places, finite_outputs
from jaxkd.network import Network, axes_of
from jaxkd.papers.hard.augmenters import Augmenter
from jaxkd.programs.distill import (
    advanced,
    carry_of,
    check_taps,
    check_training,
    distillation_objective,
    initial,
    parts_of,
    prepared,
)
from jaxkd.programs.off_policy import Replay
from jaxkd.programs.update import Keys, Player, descend
from jaxkd.types import Batch, Method, Metrics, Program, TrainState

STUDENT, AUGMENTER = 0, 1
"""Whose phase it is, of the schedule ``"threshold"``."""


@flax.struct.dataclass
class HardState:
    """The state of `hard`'s programs.

    Attributes:
        distillation: the `TrainState`.
        augmenter: the augmenter's variables.
        opt_state: its optimizer's state.
        phase: `STUDENT` or `AUGMENTER`.
        level: moving average of the disagreement on augmented images.
        replay: augmented batches of before; None without replay.
    """

    distillation: TrainState
    augmenter: Any
    opt_state: Any
    phase: Any
    level: Any
    replay: Replay | None

    @property
    def student(self) -> Any:
        """Return the student's variables."""
        return self.distillation.student

    deployed = student


@checked()
def phase_update(
    phase: Int[Array, ""], level: Float[Array, ""], low: float, high: float
) -> Int[Array, ""]:
    """Return whose phase comes next.

    The student's (0) lasts until the disagreement falls below ``low``: there is nothing
    left to learn here. The augmenter's (1) lasts until it rises above ``high``.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(
            f"low must be below high, or the phases would never end, got {low} and "
            f"{high}"
        )
    learnt, found = level < low, level > high
    return jnp.where(phase == STUDENT, learnt, ~found).astype(jnp.int32)


@checked(
    decay=fraction,
    temperature=positive,
    cap=positive,
    label_weight=probability,
    replay=natural,
    accumulate=count,
)
def hard(
    student: Network,
    teacher: Network,
    method: Method,
    optimizer: optax.GradientTransformation,
    augmenter: Augmenter,
    augmenter_optimizer: optax.GradientTransformation | None = None,
    *,
    schedule: Literal["joint", "threshold"] = "joint",
    thresholds: tuple[float, float] = (0.3, 1.5),
    decay: float = 0.9,
    temperature: float = 2.0,
    consistency: float = 1.0,
    cap: float = 8.0,
    label_weight: float = 0.0,
    replay: int = 100,
    augments: str = "image",
    accumulate: int = 1,
) -> Program:
    """Return the program of a student, and of an augmenter that looks for what is hard.

    In a step the student goes down λ·CE(x) + (1 − λ)·½·[method(x) + method(x̃)], where
    the teacher answers x̃ itself, and the augmenter down `losses.hard_augmenter_loss`.
    Half of x̃ is drawn from batches that were augmented before: an augmenter that
    collapses to one change does not make the student forget the others.

    Args:
        student: the network to train. The augmenter sees it in evaluation mode.
        teacher: frozen; differentiable by its input.
        method: such as ``kd(2.0)``.
        optimizer: of the student and the method.
        augmenter: such as ``affine()``, ``mix()``, or one made by hand.
        augmenter_optimizer: of the augmenter; clip its gradient, as in
            ``optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))``. None
            leaves the augmenter as it is, as one made by hand.
        schedule: ``"joint"``, both move in every step, or ``"threshold"``, one at a
            time: the student until the two agree on x̃, then the augmenter until they
            do not. The other's losses are then only reported; the method's own
            schedules count the steps of both.
        thresholds: of `phase_update`, in units of the disagreement.
        decay: of the average of the disagreement that the thresholds are for.
        temperature: T of the augmenter's loss.
        consistency: γ of the augmenter's loss; 0 for mixtures.
        cap: of the disagreement on one example.
        label_weight: λ; 0 needs no labels.
        replay: augmented batches that are kept, in the images' size; 0 for none.
        augments: what of the batch is augmented, read by both networks.
        accumulate: as in `jaxkd.distill`.

    Returns:
        A program whose state is a `HardState`. Its metrics are ``loss`` and
        ``grad_norm``, the method's own on both halves (``clean_kd``, ``augmented_kd``),
        ``augmenter_loss`` and ``augmenter_grad_norm``, ``disagreement`` and ``drift``
        (of the teacher's answer) on new x̃, ``spread`` (the controls' deviation over
        the batch: near 0 the augmenter has collapsed), ``level`` and ``phase``.

    Raises:
        ValueError: thresholds not in their order, or ``"threshold"`` with an augmenter
            that is not trained; from ``init``, a batch without what is augmented, or
            with what hides it from a network, or without labels where λ is above 0.
    """
    check_taps(student, teacher, method)
    phase_update(jnp.zeros((), jnp.int32), jnp.zeros(()), *thresholds)
    if schedule == "threshold" and augmenter_optimizer is None:
        raise ValueError(
            "augmenter_optimizer is None, but in schedule 'threshold' the augmenter "
            "has phases of its own: give it an optimizer, or take schedule='joint'"
        )
    moved = augmenter_optimizer or optax.set_to_zero()
    players = Player(("student", "method"), optimizer), Player(("augmenter",), moved)

    def weighed(part: str):
        """Return the method's loss as a part of the student's, and its metrics."""

        def losses(variables, outputs, taught, batch, key, step):
            found, (state, metrics) = method.loss(
                variables, outputs, taught, batch, key, step
            )
            terms = [((1 - label_weight) / 2, as_loss(found))]
            metrics = {f"{part}_{name}": value for name, value in metrics.items()}
            if part == "clean" and label_weight:
                labelled, (_, more) = cross_entropy().loss(
                    {"params": {}, "state": {}}, outputs, None, batch, key, step
                )
                terms.append((label_weight, labelled))
                metrics = disjoint(metrics, more)
            return [summed(*terms)], (state, metrics)

        return losses

    objectives = {
        part: distillation_objective(student, teacher, method, weighed(part))
        for part in ("clean", "augmented")
    }

    def learn(params: Any, carry: Any, batch: Batch, keys: Keys, step: Any):
        losses, metrics = [], {}
        for part, objective in objectives.items():
            found, (carry, more) = objective(
                params, carry, batch[part], keys.of(part), step
            )
            losses += found
            metrics |= more
        return summed(*((1.0, loss) for loss in losses)), (carry, metrics)

    def seen(batch: Batch) -> Array:
        """Return what is augmented, without the examples that do not count."""
        x = jnp.asarray(batch[augments])
        counted = counted_places(batch, x.shape[:1])
        if counted is None:
            return x
        return jnp.where(counted.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    def search(params: Any, carry: Any, batch: Batch, keys: Keys, step: Any):
        variables = {"params": params["augmenter"], "frozen": params["frozen"]}
        changed = augmenter.apply(variables, seen(batch), keys.noise)
        harder = {**batch, augments: changed.images}
        held = {"params": params["student"], "stats": carry["student"]}

        def answers(network: Network, role: str, variables: Any, batch: Batch):
            outputs, _ = network.apply(variables, network.read(batch, role))
            return finite_outputs(outputs, batch).logits

        loss, parts = hard_augmenter_loss(
            answers(teacher, "teacher", params["teacher"], batch),
            answers(teacher, "teacher", params["teacher"], harder),
            answers(student, "student", held, harder),
            temperature,
            consistency,
            cap,
        )
        metrics: dict[str, Any] = {k: masked_loss(x, batch) for k, x in parts.items()}
        metrics["spread"] = changed.controls.std(0).mean()
        return masked_loss(loss, batch), (carry, metrics)

    def init(key: PRNGKeyArray, batch: Batch) -> HardState:
        _check_augmented(batch, augments, student, teacher)
        if label_weight and batch.get("label") is None:
            raise ValueError(
                f"label_weight is {label_weight}, but the batch has no label, only "
                f"{sorted(batch)}: add it, or set label_weight=0"
            )
        keys = Keys(key)
        inner = initial(keys, batch, student, teacher, method)
        variables = augmenter.init(keys.augmenter, seen(batch))
        parts = {**parts_of(inner), "augmenter": variables["params"]}
        opt_states = [player.init(parts) for player in players]
        rows = _rows(batch)
        return HardState(
            dataclasses.replace(inner, opt_state=opt_states[0]),
            variables,
            opt_states[1],
            jnp.full((), STUDENT, jnp.int32),
            jnp.zeros(()),
            Replay.empty(rows, replay * len(rows[augments])) if replay else None,
        )

    def mixed(state: HardState, fresh: Batch, keys: Keys) -> tuple[Batch, Any]:
        """Return the augmented batch, half of it of before, and the replay after it."""
        if state.replay is None:
            return fresh, None
        rows = _rows(fresh)
        half = len(rows[augments]) // 2
        old = state.replay.sample(keys.replay, half)
        there = state.replay.added > 0
        both = {
            name: jnp.concatenate(
                [x[: len(x) - half], jnp.where(there, old[name], x[len(x) - half :])]
            )
            for name, x in rows.items()
        }
        return {**fresh, **both}, state.replay.add(rows)

    def step(state: HardState, batch: Batch) -> tuple[HardState, Metrics]:
        inner = state.distillation
        keys, carry = Keys(inner.key).at(inner.step), carry_of(inner)
        params = {
            **parts_of(inner),
            "augmenter": state.augmenter["params"],
            "frozen": state.augmenter["frozen"],
        }
        turns = {"accumulate": accumulate, "moves": True}
        theirs = {**turns, "moves": augmenter_optimizer is not None}
        if schedule == "threshold":
            turns["moves"] = state.phase == STUDENT
            theirs["moves"] = state.phase == AUGMENTER
        found = descend(
            players[1],
            state.opt_state,
            search,
            params,
            carry,
            batch,
            keys.of("augmenter"),
            inner.step,
            **theirs,
        )
        variables = {**state.augmenter, "params": found.params["augmenter"]}
        images = augmenter.apply(variables, seen(batch), keys.noise).images
        harder, buffer = mixed(state, {**batch, augments: images}, keys)
        learnt = descend(
            players[0],
            inner.opt_state,
            learn,
            found.params,
            carry,
            {
                "clean": prepared(method, keys, batch),
                "augmented": prepared(method, keys, harder),
            },
            keys.of("student"),
            inner.step,
            **turns,
        )
        inner = advanced(inner, method, learnt.params, learnt.carry)
        last = found.metrics["disagreement"]
        level = jnp.where(
            inner.step == 1, last, decay * state.level + (1 - decay) * last
        )
        phase = state.phase
        if schedule == "threshold":
            phase = phase_update(phase, level, *thresholds)
        theirs = {
            f"augmenter_{name}" if name in ("loss", "grad_norm") else name: value
            for name, value in found.metrics.items()
        }
        own = {"level": level, "phase": state.phase.astype(jnp.float32)}
        return HardState(
            dataclasses.replace(inner, opt_state=learnt.opt_state),
            variables,
            found.opt_state,
            phase,
            level,
            buffer,
        ), disjoint(learnt.metrics, theirs, own)

    def frozen(state: HardState) -> Any:
        return {
            "teacher": state.distillation.teacher,
            "augmenter": state.augmenter["frozen"],
        }

    def check(state: HardState, batch: Batch) -> None:
        check_training(state.distillation.classes, batch, student, teacher)

    return Program(init, step, frozen, axes_of(student, teacher), check)


def _rows(batch: Batch) -> dict[str, Array]:
    """Return the batch's arrays of examples: what a replay keeps."""
    return {name: jnp.asarray(x) for name, x in batch.items() if jnp.ndim(x)}


def _check_augmented(
    batch: Batch, name: str, student: Network, teacher: Network
) -> None:
    """Refuse a batch in which an augmentation would not reach both networks."""
    if name not in batch or np.ndim(batch[name]) < 1:
        raise ValueError(
            f"augments is {name!r}, but the batch has {sorted(batch)}: name the array "
            "of examples that is to be augmented"
        )
    for role, network in (("student", student), ("teacher", teacher)):
        own = [key for key in batch if key.startswith(f"{role}_")]
        hidden = [key for key in own if key.removeprefix(f"{role}_") in network.reads]
        if hidden or name not in network.reads:
            reads = ", ".join(hidden or network.reads)
            raise ValueError(
                f"augments is {name!r}, but the {role} reads {reads} of the batch, so "
                "it would not see what the augmenter makes: give both networks the "
                "same input"
            )
