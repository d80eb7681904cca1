"""Two levels of training: one objective has parameters that serve another.

The student is trained by the inner objective on training data. The inner objective's
own parameters ω (weights of examples, of losses, of augmentations) are trained by what
the student they lead to is worth, on validation data, by the outer objective.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.arguments import checked, count
from jaxkd.methods.base import as_loss
from jaxkd.network import Network, axes_of
from jaxkd.programs.distill import (
    NO_TEACHER,
    advanced,
    carry_of,
    check_taps,
    check_training,
    distillation_objective,
    frozen_teacher,
    initial,
    parts_of,
    prepared,
    teach,
)
from jaxkd.programs.update import Keys, Player, descend
from jaxkd.types import (
    Batch,
    Method,
    MethodVariables,
    Metrics,
    Program,
    TrainState,
)

NOTHING: MethodVariables = {"params": {}, "state": {}}


@checked()
def look_ahead_gradient(
    inner: Callable[[PyTree, PyTree], Array],
    outer: Callable[[PyTree], Array],
    params: PyTree,
    omega: PyTree,
    learning_rate: float,
) -> tuple[Float[Array, ""], PyTree]:
    """Return outer(θ') and its gradient for ω, where θ' = θ − η·∇_θ inner(θ, ω).

    The gradient of one unrolled step, as in learning to reweight examples (Ren et al.
    2018, arXiv:1803.09050) and differentiable architecture search (Liu et al. 2019,
    arXiv:1806.09055, Eq. 6), exact: −η·∇_ω ⟨∇_θ inner(θ, ω), ∇_θ' outer(θ')⟩. The inner
    product is taken in forward mode, so that the gradient for ω passes back through
    what depends on ω alone and not through the networks a second time.

    Args:
        inner: ``(θ, ω) -> scalar``, differentiable in forward mode.
        outer: ``θ -> scalar``.
        params: θ.
        omega: ω.
        learning_rate: η of the look-ahead step.
    """
    slope = jax.grad(inner)(params, omega)
    ahead = jax.tree.map(lambda p, g: p - learning_rate * g, params, slope)
    value, direction = jax.value_and_grad(outer)(ahead)

    def along_direction(omega: PyTree) -> Array:
        return jax.jvp(lambda p: inner(p, omega), (params,), (direction,))[1]

    gradient = jax.grad(along_direction)(omega)
    return value, jax.tree.map(lambda g: -learning_rate * g, gradient)


@checked(accumulate=count)
def bilevel(
    student: Network,
    teacher: Network | None,
    inner: Method,
    outer: Method,
    optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    *,
    look_ahead: float = 0.1,
    every: int = 1,
    accumulate: int = 1,
) -> Program:
    """Return the program that trains a student, and its objective by validation data.

    A step looks ahead where one step of gradient descent on the inner objective would
    take the student, moves the inner method's parameters ω down the outer objective
    there, and then takes the student's real step with the new ω. With ``tgeokd(...)``
    and ``cross_entropy()`` it is TGeo-KD (Hu et al. 2024, arXiv:2312.15112). In the
    look-ahead the student runs in evaluation mode: BatchNorm by its running averages,
    no dropout.

    A batch is a training batch that holds another under ``validation``;
    `jaxkd.data.with_validation` makes them.

    Args:
        student: the network to train.
        teacher: the network to learn from, or None.
        inner: the student's objective, whose params are ω.
        outer: the objective on validation data, without a teacher, parameters or state,
            such as ``cross_entropy()``.
        optimizer: of the student.
        outer_optimizer: of ω; ``optax.set_to_zero()`` leaves ω as it began.
        look_ahead: learning rate η of the look-ahead step, which is plain gradient
            descent whatever the optimizer is.
        every: steps between two of ω.
        accumulate: of the student's real step, as in `jaxkd.distill`.

    Returns:
        A program whose state is a `TrainState` with both optimizers' states, by the
        names ``student`` and ``outer``. Its metrics are those of `distill`, and
        ``validation_loss``, of the student looked ahead at.

    Raises:
        ValueError: η or ``every`` out of range; as `distill`; from ``init``, an inner
            method without or an outer one with parameters, or a batch without
            ``validation``.
    """
    if look_ahead <= 0 or every < 1:
        raise ValueError(
            f"look_ahead must be above 0 and every at least 1, got {look_ahead} and "
            f"{every}"
        )
    check_taps(student, teacher, inner)
    objective = distillation_objective(student, teacher, inner)
    players = {
        "student": Player(("student",), optimizer),
        "outer": Player(("method",), outer_optimizer),
    }

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        training, validation = _split(batch)
        keys = Keys(key)
        state = initial(keys, training, student, teacher, inner)
        parts = parts_of(state)
        if not jax.tree.leaves(parts["method"]):
            raise ValueError(
                "inner has no parameters for the validation data to train: use a "
                "method that has, such as tgeokd(), or distill()"
            )
        outputs = _evaluate(student, outer, state.student, validation)
        if jax.tree.leaves(outer.init(keys.outer, outputs, NO_TEACHER, validation)):
            raise ValueError(
                "outer has parameters or state of its own, which nothing would train: "
                "use a plain loss, such as cross_entropy()"
            )
        opt_state = {name: player.init(parts) for name, player in players.items()}
        return dataclasses.replace(state, opt_state=opt_state)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        training, validation = _split(batch)
        # The look-ahead draws what the real step will draw.
        keys = Keys(state.key).at(state.step)
        training = prepared(inner, keys, training)
        params, opt_state = parts_of(state), dict(state.opt_state)
        taught = teach(teacher, inner, state.teacher, training)

        def inner_loss(theta: PyTree, omega: PyTree) -> Array:
            changed = {**state.student, "params": theta}
            outputs = _evaluate(student, inner, changed, training)
            variables = {**state.method, "params": omega}
            loss, _ = inner.loss(
                variables, outputs, taught, training, keys.method, state.step
            )
            return as_loss(loss).value

        def outer_loss(theta: PyTree) -> Array:
            changed = {**state.student, "params": theta}
            outputs = _evaluate(student, outer, changed, validation)
            loss, _ = outer.loss(
                NOTHING, outputs, NO_TEACHER, validation, keys.outer, state.step
            )
            return as_loss(loss).value

        def improved(params: Any, opt_state: Any) -> tuple[Any, Any, Array]:
            value, gradient = look_ahead_gradient(
                inner_loss, outer_loss, params["student"], params["method"], look_ahead
            )
            return *players["outer"].move(
                {"method": gradient}, opt_state, params
            ), value

        def kept(params: Any, opt_state: Any) -> tuple[Any, Any, Array]:
            return params, opt_state, outer_loss(params["student"])

        params, opt_state["outer"], value = jax.lax.cond(
            state.step % every == 0, improved, kept, params, opt_state["outer"]
        )
        found = descend(
            players["student"],
            opt_state["student"],
            objective,
            params,
            carry_of(state),
            training,
            keys,
            state.step,
            accumulate=accumulate,
        )
        opt_state["student"] = found.opt_state
        state = advanced(state, inner, found.params, found.carry)
        state = dataclasses.replace(state, opt_state=opt_state)
        return state, {**found.metrics, "validation_loss": value}

    def check(state: TrainState, batch: Batch) -> None:
        for part in _split(batch):
            check_training(state.classes, part, student, teacher)

    return Program(init, step, frozen_teacher, axes_of(student, teacher), check)


def _split(batch: Batch) -> tuple[Batch, Batch]:
    """Return the training and the validation batch."""
    if "validation" not in batch:
        raise ValueError(
            f"the batch has {sorted(batch)}, but no validation: make batches with "
            "data.with_validation(batches, source, ...)"
        )
    training = {name: value for name, value in batch.items() if name != "validation"}
    return training, batch["validation"]


def _evaluate(student: Network, method: Method, variables: Any, batch: Batch) -> Any:
    """Return the student's outputs in evaluation mode."""
    return student.apply(
        variables, student.read(batch, "student"), taps=method.student_taps
    )[0]
