"""Distillation on text that the networks write themselves, within the train step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, natural, probability
from jaxkd.checks import disjoint
from jaxkd.generation import Sampling, generate
from jaxkd.network import Network
from jaxkd.networks.mixed import mixed
from jaxkd.programs.distill import distill
from jaxkd.programs.update import Keys
from jaxkd.types import Batch, Method, Metrics, Program, TrainState

PROMPT = ("input_ids", "attention_mask")

Response = tuple[
    Int[Array, "batch new"], Int[Array, "batch new"], Float[Array, "batch new"]
]


@checked(student_share=probability, teacher_share=probability, eos=natural)
def on_policy(
    student: Network,
    teacher: Network,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    max_new_tokens: int,
    student_share: float = 0.5,
    teacher_share: float = 0.0,
    teacher_mixture: float = 0.0,
    sampling: Sampling = Sampling(),  # noqa: B008
    eos: int | tuple[int, ...] | None = None,
    pad: int = 0,
    accumulate: int = 1,
) -> Program:
    """Return `distill`'s program on answers that are sampled anew at every step.

    Generalised knowledge distillation (GKD, Agarwal et al. 2023, arXiv:2306.13649,
    Algorithm 1): a step takes the student's answers with probability
    ``student_share``, so that it learns from its own mistakes, the teacher's with
    ``teacher_share`` (sequence-level distillation, Kim and Rush 2016,
    arXiv:1606.07947), and otherwise the batch's. No gradient goes through sampling.

    Batches have prompts, ``input_ids`` and ``attention_mask`` (batch, prompt), padded
    before them (`jaxkd.data.Prompts`), and, unless every step samples,
    ``response_ids`` and ``response_mask`` (batch, ``max_new_tokens``), padded after.
    The method sees prompt and answer as one row, its ``label``, a ``mask`` of the
    answer's tokens, and ``sampled_log_prob``, what each was sampled with.

    Args:
        student: with the tap ``cache``.
        teacher: likewise if it samples.
        method: such as ``linear_kd(jensen_shannon(0.5))``, or `minillm`.
        optimizer: any optax transformation.
        max_new_tokens: of an answer.
        student_share: λ, of the steps.
        teacher_share: of the steps; at most 1 − λ.
        teacher_mixture: of the teacher's probabilities in the student's sampling, in
            [0, 1): MiniLLM's teacher-mixed sampling (arXiv:2306.08543, Eq. 4).
        sampling: how tokens are drawn.
        eos: token, or tokens, that end an answer.
        pad: token after the end.
        accumulate: as in `jaxkd.distill`; the answers are sampled for the whole batch.

    Raises:
        ValueError: shares outside [0, 1]; from ``init``, a batch without prompts, or
            without the responses that are needed.
    """
    if min(student_share, teacher_share) < 0 or student_share + teacher_share > 1:
        raise ValueError(
            "student_share and teacher_share must be at least 0 and at most 1 in all, "
            f"got {student_share} and {teacher_share}"
        )
    program = distill(student, teacher, method, optimizer, accumulate=accumulate)
    policy = mixed(student, teacher, teacher_mixture) if teacher_mixture else student
    student_writes, teacher_writes = (
        writer(network, max_new_tokens, sampling, eos, pad)
        for network in (policy, teacher)
    )

    def response(state: TrainState, batch: Batch) -> Response:
        keys = Keys(state.key).at(state.step)
        key = keys.sampling
        pair = {"first": state.student, "second": state.teacher}
        ways: list[tuple[float, Callable[[], Response]]] = [
            (
                student_share,
                lambda: student_writes(
                    pair if teacher_mixture else state.student, batch, key
                ),
            ),
            (teacher_share, lambda: teacher_writes(state.teacher, batch, key)),
            (1 - student_share - teacher_share, lambda: given(batch)),
        ]
        ways = [way for way in ways if way[0] > 1e-9]
        if len(ways) == 1:
            return ways[0][1]()
        shares = jnp.array([share for share, _ in ways])
        index = jax.random.categorical(keys.choice, jnp.log(shares))
        return jax.lax.switch(index, [way for _, way in ways])

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        reads = student_share + teacher_share < 1
        shape = check_prompts(batch, max_new_tokens, responses=reads)
        some = jnp.full(shape, pad, jnp.int32), jnp.ones(shape, jnp.int32)
        first = given(batch) if "response_ids" in batch else (*some, jnp.zeros(shape))
        return program.init(key, answered(batch, *first))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        ids, mask, log_probs = response(state, batch)
        state, metrics = program.step(state, answered(batch, ids, mask, log_probs))
        return state, disjoint(metrics, {"response_tokens": mask.sum(1).mean()})

    return program._replace(init=init, step=step)


@checked(eos=natural, pad=natural)
def writer(
    network: Network,
    max_new_tokens: int,
    sampling: Sampling,
    eos: int | tuple[int, ...] | None,
    pad: int,
) -> Callable[[Any, Batch, PRNGKeyArray], Response]:
    """Return ``(variables, batch, key) ->`` sampled answers, with no gradient."""

    def write(variables: Any, batch: Batch, key: PRNGKeyArray) -> Response:
        found = generate(
            network,
            variables,
            {name: batch[name] for name in PROMPT},
            max_new_tokens=max_new_tokens,
            key=key,
            sampling=sampling,
            eos=eos,
            pad=pad,
        )
        mask = found.mask.astype(jnp.int32)
        return jax.lax.stop_gradient((found.tokens, mask, found.log_probs))

    return write


def given(batch: Batch) -> Response:
    """Return the batch's own answers."""
    ids, mask = jnp.int32(batch["response_ids"]), jnp.int32(batch["response_mask"])
    return ids, mask, jnp.zeros(ids.shape)


@checked()
def check_prompts(
    batch: Batch, max_new_tokens: int, *, responses: bool
) -> tuple[int, int]:
    """Return the answers' shape, (batch, ``max_new_tokens``).

    Args:
        batch: with prompts.
        max_new_tokens: of an answer.
        responses: whether some steps read the batch's own.

    Raises:
        ValueError: something is missing, or the responses have another shape.
    """
    needed = (*PROMPT, "response_ids", "response_mask") if responses else PROMPT
    missing = [name for name in needed if name not in batch]
    if missing:
        raise ValueError(
            f"the batch has {sorted(batch)}, but prompts and answers need "
            f"{', '.join(missing)}: add them, or sample at every step"
        )
    shape = (len(batch["input_ids"]), max_new_tokens)
    if "response_ids" in batch and batch["response_ids"].shape != shape:
        raise ValueError(
            f"batch['response_ids'] has shape {batch['response_ids'].shape}, but "
            f"answers of max_new_tokens {max_new_tokens} have {shape}: pad or cut "
            "them to it"
        )
    return shape


def answered(
    batch: Batch,
    response_ids: Int[Array, "batch new"],
    response_mask: Int[Array, "batch new"],
    sampled_log_prob: Float[Array, "batch new"],
) -> Batch:
    """Return the batch as methods read it: prompts and answers in one row.

    Args:
        batch: with ``input_ids`` and ``attention_mask``, padded before the prompt.
        response_ids: that follow.
        response_mask: 0 after an answer's end.
        sampled_log_prob: of each token.
    """
    ids = jnp.concatenate([jnp.int32(batch["input_ids"]), response_ids], axis=1)
    real = jnp.concatenate([jnp.int32(batch["attention_mask"]), response_mask], axis=1)
    before = ((0, 0), (batch["input_ids"].shape[1] - 1, 0))
    rest = {
        name: value for name, value in batch.items() if not name.startswith("response_")
    }
    return {
        **rest,
        "input_ids": ids[:, :-1],
        "attention_mask": real[:, :-1],
        "position_ids": jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)[:, :-1],
        "label": ids[:, 1:],
        "mask": jnp.pad(response_mask, before),
        "sampled_log_prob": jnp.pad(sampled_log_prob, before),
    }
