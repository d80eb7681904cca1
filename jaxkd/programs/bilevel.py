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

from jaxkd.network import Network
from jaxkd.programs.distill import distill
from jaxkd.types import (
    Batch,
    Method,
    MethodVariables,
    Metrics,
    Outputs,
    Program,
    TrainState,
)

NO_TEACHER = Outputs(None, {})
NOTHING: MethodVariables = {"params": {}, "state": {}}


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
    program = distill(student, teacher, _held(inner), optimizer)

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        training, validation = _split(batch)
        keys = jax.random.split(key, 3)
        state = program.init(keys[0], _prepared(inner, keys[1], training))
        omega = state.method["state"]["omega"]
        if not jax.tree.leaves(omega):
            raise ValueError(
                "inner has no parameters for the validation data to train: use a "
                "method that has, such as tgeokd(), or distill()"
            )
        outputs = _evaluate(student, outer, state.student, validation)
        if jax.tree.leaves(outer.init(keys[2], outputs, NO_TEACHER, validation)):
            raise ValueError(
                "outer has parameters or state of its own, which nothing would train: "
                "use a plain loss, such as cross_entropy()"
            )
        return _joined(state, omega, outer_optimizer.init(omega))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        training, validation = _split(batch)
        # As distill splits it: the look-ahead draws what the real step will draw.
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        training = _prepared(inner, keys[0], training)
        taught = NO_TEACHER
        if teacher is not None:
            taught, _ = teacher.apply(
                state.teacher,
                teacher.read(training, "teacher"),
                taps=inner.teacher_taps,
            )

        def inner_loss(params: PyTree, omega: PyTree) -> Array:
            changed = {**state.student, "params": params}
            outputs = _evaluate(student, inner, changed, training)
            variables = {**state.method, "params": omega}
            return inner.loss(
                variables, outputs, taught, training, keys[2], state.step
            )[0]

        def outer_loss(params: PyTree) -> Array:
            changed = {**state.student, "params": params}
            outputs = _evaluate(student, outer, changed, validation)
            return outer.loss(
                NOTHING, outputs, NO_TEACHER, validation, keys[1], state.step
            )[0]

        def improved(omega: PyTree, opt_state: Any) -> tuple[PyTree, Any, Array]:
            value, gradient = look_ahead_gradient(
                inner_loss, outer_loss, state.student["params"], omega, look_ahead
            )
            updates, opt_state = outer_optimizer.update(gradient, opt_state, omega)
            return optax.apply_updates(omega, updates), opt_state, value

        def kept(omega: PyTree, opt_state: Any) -> tuple[PyTree, Any, Array]:
            return omega, opt_state, outer_loss(state.student["params"])

        omega, opt_state, value = jax.lax.cond(
            state.step % every == 0,
            improved,
            kept,
            state.method["params"],
            state.opt_state["outer"],
        )
        moved, metrics = program.step(_parted(state, omega), training)
        return _joined(moved, omega, opt_state), {**metrics, "validation_loss": value}

    return Program(init, step)


def _held(method: Method) -> Method:
    """Return the method with its parameters in the state, where nothing trains them."""

    def init(key, student, teacher, batch) -> MethodVariables:
        found = method.init(key, student, teacher, batch)
        state = {"omega": found["params"], "carried": found["state"]}
        return {"params": {}, "state": state}

    def loss(variables, student, teacher, batch, key, step):
        held = variables["state"]
        own = {"params": held["omega"], "state": held["carried"]}
        value, (carried, metrics) = method.loss(own, student, teacher, batch, key, step)
        return value, ({**held, "carried": carried}, metrics)

    return method._replace(init=init, loss=loss, prepare=None)


def _parted(state: TrainState, omega: PyTree) -> TrainState:
    """Return the state of the student's own program, holding ω."""
    held = {"omega": omega, "carried": state.method["state"]}
    return dataclasses.replace(
        state,
        method={"params": {}, "state": held},
        opt_state=state.opt_state["student"],
    )


def _joined(state: TrainState, omega: PyTree, opt_state: Any) -> TrainState:
    """Return the whole state; the opposite of `_parted`."""
    return dataclasses.replace(
        state,
        method={"params": omega, "state": state.method["state"]["carried"]},
        opt_state={"student": state.opt_state, "outer": opt_state},
    )


def _split(batch: Batch) -> tuple[Batch, Batch]:
    """Return the training and the validation batch."""
    if "validation" not in batch:
        raise ValueError(
            f"the batch has {sorted(batch)}, but no validation: make batches with "
            "data.with_validation(batches, source, ...)"
        )
    training = {name: value for name, value in batch.items() if name != "validation"}
    return training, batch["validation"]


def _prepared(method: Method, key: PRNGKeyArray, batch: Batch) -> Batch:
    return method.prepare(key, batch) if method.prepare else batch


def _evaluate(student: Network, method: Method, variables: Any, batch: Batch) -> Any:
    """Return the student's outputs in evaluation mode."""
    return student.apply(variables, student.read(batch), taps=method.student_taps)[0]
