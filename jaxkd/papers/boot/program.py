"""BOOT: a one-step student of a diffusion model, trained without any data.

Gu et al. 2023, arXiv:2306.05544. The student maps noise, and a time, to what the
teacher's deterministic sampler would hold at that time had it started from the noise.
It learns each time from its own answer at a later one and one call of the teacher.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxkd.arguments import checked, count
from jaxkd.checks import check_batch, unknown_name
from jaxkd.losses.diffusion import (
    PREDICTIONS,
    WEIGHTINGS,
    Prediction,
    Schedule,
    SignalFunction,
    Weighting,
    boot_bootstrap_loss,
    boot_boundary_loss,
    cfg_signal,
    to_signal,
    vp_schedule,
)
from jaxkd.methods.base import masked_loss, summed
from jaxkd.methods.masks import finite_outputs
from jaxkd.network import Network, axes_of
from jaxkd.programs.update import Keys, Player, descend
from jaxkd.sharding.axes import constrain_batch
from jaxkd.types import Batch, Metrics, Outputs, Program, TrainState, Variables

DRAWN = ("noise", "time", "start")
"""What a step draws for each example."""


@checked()
def denoiser(
    network: Network,
    variables: Variables,
    *,
    prediction: Prediction = "x",
    schedule: Schedule = "cosine",
    condition: Int[Array, "batch"] | None = None,
    guidance: float = 1.0,
    no_condition: int | None = None,
) -> SignalFunction:
    """Return a diffusion model's estimate of x_0 as ``(noisy, time) -> signal``.

    Of a student of `boot` it is ``(noise, time) -> signal`` with the defaults, and its
    sample is the signal at the smallest time it was trained for.

    Args:
        network: of a dict of ``image``, ``time`` and ``condition``.
        variables: the network's.
        prediction: what its output stands for.
        schedule: of the noise.
        condition: the class of each example.
        guidance: weight w of classifier-free guidance; 1 for none, which takes a call
            of the network for the batch instead of for twice the batch.
        no_condition: the condition that stands for none; for guidance.

    Raises:
        ValueError: an unknown prediction, or guidance without conditions.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(unknown_name("prediction", prediction, PREDICTIONS))
    if guidance != 1 and (condition is None or no_condition is None):
        raise ValueError(
            f"guidance is {guidance}, but it compares with and without a condition: "
            "give condition and no_condition, or leave guidance at 1"
        )

    def signal(noisy: Array, time: Array, given: Array | None) -> Array:
        inputs = {"image": noisy, "time": time}
        if given is not None:
            inputs["condition"] = given
        output = network.apply(variables, inputs)[0].logits
        return to_signal(output, noisy, vp_schedule(time, schedule), prediction)

    def denoise(noisy: Array, time: Array) -> Array:
        if guidance == 1 or condition is None or no_condition is None:
            return signal(noisy, time, condition)
        # An example's two are neighbours, so that a batch stays split as it is.
        pairs = jnp.stack([condition, jnp.full_like(condition, no_condition)], axis=1)
        both = signal(
            jnp.repeat(noisy, 2, axis=0), jnp.repeat(time, 2), pairs.reshape(-1)
        ).reshape(-1, 2, *noisy.shape[1:])
        return cfg_signal(both[:, 0], both[:, 1], guidance)

    return denoise


@checked(accumulate=count)
def boot(
    student: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
    shape: Sequence[int],
    *,
    prediction: Prediction = "x",
    schedule: Schedule = "cosine",
    delta: float = 0.04,
    times: tuple[float, float] = (0.0, 0.99),
    weighting: Weighting = "inv_delta2",
    order: int = 1,
    boundary: float = 1.0,
    guidance: float = 1.0,
    no_condition: int | None = None,
    accumulate: int = 1,
) -> Program:
    """Return the program that trains a one-step student of a diffusion model.

    A batch holds ``index``, as `jaxkd.data.batches` gives it, whose length is the
    number of trajectories, and for conditional models ``condition``, the class of each;
    ``data.Conditions`` makes them. Each example's noise and time come from the run's
    key, the step and its index, so they are drawn where its part of the batch lies.

    The student's output is read as the signal. A student that is to start from its
    teacher, as the paper has it, is ``network.with_variables(variables)`` of a teacher
    that predicts the signal too. Neither network drops units out: the student at two
    times must be one function.

    Args:
        student: the network to train, of a dict of ``image``, ``time``, ``condition``.
        teacher: the diffusion model, frozen.
        optimizer: any optax transformation.
        shape: of one example, such as (64, 64, 3).
        prediction: what the teacher's output stands for.
        schedule: the teacher's, of the noise.
        delta: the step δ between the two times.
        times: the first and the last time of a trajectory. Samples are the student's
            signal at the first; the last is below 1 where the teacher predicts noise.
        weighting: of the bootstrapping loss, see `losses.boot_bootstrap_loss`.
        order: of the teacher's step, 1 (DDIM) or 2 (Heun, two calls).
        boundary: weight β of the boundary loss.
        guidance: weight of the teacher's classifier-free guidance; 1 for none.
        no_condition: the condition that stands for none; for guidance.
        accumulate: parts in which a batch is worked through, see `programs.descend`.

    Returns:
        A program whose state is a `TrainState` (with an empty ``method``). Its metrics
        are ``loss``, ``bootstrap``, ``boundary`` and ``grad_norm``.

    Raises:
        ValueError: times that are no interval within [0, 1] longer than δ, an unknown
            weighting, order or prediction, or a negative β.
    """
    first, last = times
    if not 0 < delta < last - first or first < 0 or last > 1:
        raise ValueError(
            f"times must be an interval within [0, 1] and delta between 0 and its "
            f"length, got times {times} and delta {delta}"
        )
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (DDIM) or 2 (Heun), got {order}")
    for kind, name, valid in (
        ("weighting", weighting, WEIGHTINGS),
        ("prediction", prediction, PREDICTIONS),
    ):
        if name not in valid:
            raise ValueError(unknown_name(kind, name, valid))

    player = Player(("student",), optimizer)

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        check_batch(batch)
        keys = Keys(key)
        variables = student.init(keys.student)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=keys.run,
            student=variables,
            teacher=teacher.init(keys.teacher),
            method={},
            opt_state=player.init({"student": variables["params"]}),
        )

    def draw(key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        noises, moments, starts = jax.random.split(key, 3)
        time = jax.random.uniform(moments, minval=first + delta, maxval=last)
        return (
            jax.random.normal(noises, shape),
            time,
            jax.random.normal(starts, shape),
        )

    def objective(params: Any, stats: Any, batch: Batch, keys: Keys, step: Any):
        noise, time, start = (batch[name] for name in DRAWN)
        conditions = [
            batch.get(f"{role}_condition", batch["condition"])
            for role in ("student", "teacher")
        ]

        def finite(signal: SignalFunction) -> SignalFunction:
            """Return what is finite where nothing counts."""
            return lambda noisy, time: (
                finite_outputs(Outputs(signal(noisy, time)), batch).logits
            )

        taught = denoiser(
            teacher,
            jax.lax.stop_gradient(params["teacher"]),
            prediction=prediction,
            schedule=schedule,
            condition=conditions[1],
            guidance=guidance,
            no_condition=no_condition,
        )
        variables = {"params": params["student"], "stats": stats}
        learnt = denoiser(student, variables, condition=conditions[0])
        learnt, taught = finite(learnt), finite(taught)
        bootstrap = boot_bootstrap_loss(
            learnt,
            taught,
            noise,
            time,
            delta,
            schedule=schedule,
            weighting=weighting,
            order=order,
        )
        at_last = jnp.full_like(time, last)
        losses = {
            "bootstrap": bootstrap,
            "boundary": boot_boundary_loss(learnt, taught, start, at_last),
        }
        terms = {name: masked_loss(x, batch) for name, x in losses.items()}
        total = summed((1.0, terms["bootstrap"]), (boundary, terms["boundary"]))
        return total, (stats, terms)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = Keys(state.key).at(state.step)
        each = jax.vmap(jax.random.fold_in, (None, 0))(keys.noise, _index(batch))
        # What is drawn lies nowhere yet.
        drawn = map(constrain_batch, jax.vmap(draw)(each))
        found = descend(
            player,
            state.opt_state,
            objective,
            {"student": state.student["params"], "teacher": state.teacher},
            state.student["stats"],
            {"condition": None, **batch, **dict(zip(DRAWN, drawn, strict=True))},
            keys,
            state.step,
            accumulate=accumulate,
        )
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            student={**state.student, "params": found.params["student"]},
            opt_state=found.opt_state,
        )
        return state, found.metrics

    return Program(init, step, lambda state: state.teacher, axes_of(student, teacher))


def _index(batch: Batch) -> Int[Array, "batch"]:
    if "index" not in batch:
        raise ValueError(
            f"the batch has {sorted(batch)}, but boot() needs index, from which each "
            "example's noise is drawn: make batches with data.batches, of "
            "data.Conditions where there is no data"
        )
    return batch["index"]
